//! Pods as a kubelet has them made: through containerd's CRI, with a runtime handler, on a CNI network. No Kubernetes is needed.

use crate::container::Ended;
use crate::{Mode, cri};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The runtime handler that `terok setup --engine containerd` makes.
pub const HANDLER: &str = "terok";
const SOCKET: &str = "/run/lab/cri.sock";
const PROBE: &str = "/run/terok-probe";
/// The namespace that the pods say they are of.
pub const NAMESPACE: &str = "lab";

/// Starts the lab's containerd for pods, with the handler, once; `false`, said aloud, where it does not run on this machine.
pub fn kubelet() -> bool {
    static STARTED: OnceLock<bool> = OnceLock::new();
    *STARTED.get_or_init(|| {
        // Without terok first: what fails here fails for want of containerd.
        let started = ["config", "restart"].map(|verb| Mode::Rootful.run("/run/lab/scripts/cri.sh", &[verb]));
        if let Some(failed) = started.into_iter().find(|ended| ended.code != 0) {
            terok_need::missing(
                "containerd",
                format!("it does not start on this machine: {}", failed.stderr),
            );
            return false;
        }
        crate::set_up(&["--engine", "containerd"]);
        kubelet_restart();
        true
    })
}

/// Restarts it, or starts it.
pub fn kubelet_restart() {
    Mode::Rootful.run("/run/lab/scripts/cri.sh", &["restart"]).succeeded();
    // CRI comes up, and learns of images, after the daemon.
    crate::eventually("CRI knows its images", || {
        ["bb", "pause"].iter().all(|name| {
            let image = Some(cri::Name { name: format!("localhost/{name}:latest") });
            let answer = cri::call(Path::new(SOCKET), "ImageService/ImageStatus", &cri::AskImage { image });
            answer.is_ok_and(|found: cri::Image| found.image.is_some())
        })
    });
}

/// Calls a method of the runtime service.
fn call<Q: prost::Message, A: prost::Message + Default>(method: &str, question: &Q) -> Result<A, String> {
    cri::call(Path::new(SOCKET), &format!("RuntimeService/{method}"), question)
}

/// How a pod is to be.
#[derive(Debug, Clone)]
pub struct PodRecipe {
    annotations: HashMap<String, String>,
    handler: String,
    host_network: bool,
    privileged: bool,
}

impl PodRecipe {
    /// A pod of the handler [`HANDLER`] without annotations.
    pub fn plain() -> Self {
        PodRecipe {
            annotations: HashMap::new(),
            handler: HANDLER.to_owned(),
            host_network: false,
            privileged: false,
        }
    }

    /// A protected pod that may reach `allow`.
    pub fn allowing(allow: &str) -> Self {
        let pod = Self::plain();
        if allow.is_empty() { pod.annotate("shield", "up") } else { pod.annotate("shield.allow", allow) }
    }

    /// Adds the annotation `terok.KEY`.
    #[must_use]
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(format!("terok.{key}"), value.to_owned());
        self
    }

    /// With another handler; the empty name is the default one.
    #[must_use]
    pub fn handler(mut self, handler: &str) -> Self {
        self.handler = handler.to_owned();
        self
    }

    /// In the node's network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// With a container that is privileged, of which CRI is told beforehand.
    #[must_use]
    pub fn privileged(mut self) -> Self {
        self.privileged = true;
        self
    }

    /// Makes its sandbox; what CRI said where it did not become one.
    pub fn run(&self) -> Result<KubePod, String> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("p{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespaces = cri::Namespaces { network: if self.host_network { 2 } else { 0 }, pid: 1 };
        let config = cri::PodConfig {
            metadata: Some(cri::PodMetadata {
                name: name.clone(),
                uid: format!("uid-{name}"),
                namespace: NAMESPACE.to_owned(),
            }),
            hostname: if self.host_network { String::new() } else { name.clone() },
            log_directory: format!("/run/lab/cri-logs/{name}"),
            annotations: self.annotations.clone(),
            linux: Some(cri::PodLinux {
                security: Some(cri::PodSecurity {
                    namespaces: Some(namespaces),
                    privileged: self.privileged,
                }),
            }),
        };
        let question = cri::RunPod { config: Some(config.clone()), handler: self.handler.clone() };
        let answer: cri::Id = call("RunPodSandbox", &question)?;
        Ok(KubePod { id: answer.id, name, config, namespaces })
    }

    /// A pod that must come up.
    #[track_caller]
    pub fn start(&self) -> KubePod {
        self.run().unwrap_or_else(|said| panic!("no pod: {said}"))
    }

    /// What CRI says of a pod that must not come up.
    #[track_caller]
    pub fn refused(&self) -> String {
        match self.run() {
            Err(said) => said,
            Ok(_) => panic!("the pod came up"),
        }
    }
}

/// A pod's sandbox; gone, with its containers, at the end of the test.
#[derive(Debug)]
pub struct KubePod {
    /// Id of its sandbox.
    pub id: String,
    /// Its name.
    pub name: String,
    config: cri::PodConfig,
    namespaces: cri::Namespaces,
}

/// How a container of a pod is to be.
#[derive(Debug, Clone, Default)]
pub struct MemberRecipe {
    annotations: HashMap<String, String>,
    image: Option<String>,
    capabilities: Vec<String>,
    privileged: bool,
}

impl MemberRecipe {
    /// Adds the annotation `terok.KEY`, which a device plugin could, to this container alone.
    #[must_use]
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(format!("terok.{key}"), value.to_owned());
        self
    }

    /// Another image than busybox.
    #[must_use]
    pub fn image(mut self, image: &str) -> Self {
        self.image = Some(image.to_owned());
        self
    }

    /// With a capability more.
    #[must_use]
    pub fn capability(mut self, name: &str) -> Self {
        self.capabilities.push(name.to_owned());
        self
    }

    /// Privileged.
    #[must_use]
    pub fn privileged(mut self) -> Self {
        self.privileged = true;
        self
    }
}

impl KubePod {
    /// A container that only waits to be probed.
    #[track_caller]
    pub fn container(&self) -> Member {
        self.run(&MemberRecipe::default()).unwrap_or_else(|said| panic!("no container: {said}"))
    }

    /// Creates and starts a container; what CRI said where it does not run.
    pub fn run(&self, recipe: &MemberRecipe) -> Result<Member, String> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let security = cri::Security {
            capabilities: Some(cri::Capabilities { add: recipe.capabilities.clone() }),
            privileged: recipe.privileged,
            namespaces: Some(self.namespaces),
        };
        let config = cri::ContainerConfig {
            metadata: Some(cri::Name { name: name.clone() }),
            image: Some(cri::Name {
                name: recipe.image.clone().unwrap_or_else(|| "localhost/bb:latest".to_owned()),
            }),
            command: vec![PROBE.to_owned(), "sleep".to_owned()],
            mounts: vec![cri::Mount {
                inside: PROBE.to_owned(),
                host: "/run/lab/bin/terok-probe".to_owned(),
                readonly: true,
            }],
            annotations: recipe.annotations.clone(),
            log_path: format!("{name}.log"),
            linux: Some(cri::ContainerLinux { security: Some(security) }),
        };
        let question = cri::CreateContainer {
            pod: self.id.clone(),
            config: Some(config),
            pod_config: Some(self.config.clone()),
        };
        let made: cri::Id = call("CreateContainer", &question)?;
        let member = Member { id: made.id.clone(), name };
        call::<_, cri::Nothing>("StartContainer", &made)?;
        Ok(member)
    }

    /// `StopPodSandbox`: its containers and itself end.
    #[track_caller]
    pub fn stop(&self) {
        let done: Result<cri::Nothing, _> = call("StopPodSandbox", &cri::Id { id: self.id.clone() });
        done.unwrap_or_else(|said| panic!("the pod does not stop: {said}"));
    }

    /// `config.json` of its sandbox as the runtime got it.
    #[track_caller]
    pub fn config_json(&self) -> Value {
        config_json(&self.id)
    }

    /// Pid of its sandbox.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        pid("PodSandboxStatus", &self.id)
    }

    /// Its IPv4 address, as the kubelet knows it.
    #[track_caller]
    pub fn address(&self) -> String {
        let net = format!("--net=/proc/{}/ns/net", self.pid());
        let text = Mode::Rootful
            .run("nsenter", &[&net, "ip", "-o", "-4", "addr", "show", "dev", "eth0"])
            .succeeded();
        let address = text.split_once("inet ").and_then(|(_, rest)| rest.split('/').next());
        address.unwrap_or_else(|| panic!("no address: {text}")).to_owned()
    }

    /// The ruleset in its network namespace, as nft prints it.
    #[track_caller]
    pub fn ruleset(&self) -> String {
        let net = format!("--net=/proc/{}/ns/net", self.pid());
        Mode::Rootful.run("nsenter", &[&net, "nft", "list", "ruleset"]).succeeded()
    }
}

impl Drop for KubePod {
    fn drop(&mut self) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let _ = call::<_, cri::Nothing>(method, &cri::Id { id: self.id.clone() });
        }
    }
}

/// A container of a pod.
#[derive(Debug)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
}

impl Member {
    /// `ExecSync`, as `kubectl exec` and exec probes.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> Ended {
        let question = cri::Exec {
            id: self.id.clone(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 0,
        };
        let answer: Result<cri::Output, _> = call("ExecSync", &question);
        let answer = answer.unwrap_or_else(|said| panic!("{command:?}: {said}"));
        Ended::from_parts(answer.code, &answer.stdout, &answer.stderr, format!("{command:?}"))
    }

    /// Runs the steps of the probe in it.
    #[track_caller]
    pub fn probe(&self, steps: &[&str]) -> Vec<Value> {
        self.exec(&[&[PROBE], steps].concat()).lines()
    }

    /// `StopContainer` and `RemoveContainer`.
    #[track_caller]
    pub fn remove(&self) {
        let stop = cri::StopContainer { id: self.id.clone(), timeout: 0 };
        let id = cri::Id { id: self.id.clone() };
        let stopped: Result<cri::Nothing, _> = call("StopContainer", &stop);
        let removed = stopped.and_then(|_| call("RemoveContainer", &id));
        let _: cri::Nothing = removed.unwrap_or_else(|said| panic!("the container does not go: {said}"));
    }

    /// `config.json` as the runtime got it.
    #[track_caller]
    pub fn config_json(&self) -> Value {
        config_json(&self.id)
    }

    /// Pid of its first process.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        pid("ContainerStatus", &self.id)
    }
}

/// Where containerd has the bundle of container or sandbox `id`.
pub fn bundle(id: &str) -> PathBuf {
    Path::new("/run/lab/cri/io.containerd.runtime.v2.task/k8s.io").join(id)
}

#[track_caller]
fn config_json(id: &str) -> Value {
    let path = bundle(id).join("config.json");
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

#[track_caller]
fn pid(method: &str, id: &str) -> u32 {
    let question = cri::AskStatus { id: id.to_owned(), verbose: true };
    let answer: Result<cri::Status, _> = call(method, &question);
    let answer = answer.unwrap_or_else(|said| panic!("{method}: {said}"));
    let info: Value = serde_json::from_str(&answer.info["info"]).expect("JSON");
    info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid")
}
