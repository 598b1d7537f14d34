//! The little of Kubernetes' container runtime interface (CRI v1) that tests speak: gRPC over containerd's socket.
//! Messages are the fields that are used, with their numbers of `api.proto`; prost passes over the others.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use std::collections::HashMap;
use std::path::Path;

/// What the service said in place of an answer.
pub(crate) type Said = String;

/// Calls `method`, `Service/Method`, of the service behind `socket`.
pub(crate) fn call<Q: Message, A: Message + Default>(
    socket: &Path,
    method: &str,
    question: &Q,
) -> Result<A, Said> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let answer = runtime.block_on(async {
        let limit = std::time::Duration::from_secs(120);
        tokio::time::timeout(limit, asked(socket, method, &framed(question))).await
    });
    let answer = answer.unwrap_or_else(|_| panic!("{method}: no answer for two minutes"));
    let answer = answer.unwrap_or_else(|error| panic!("{method}: {error}"))?;
    // One byte that says uncompressed, four of length.
    Ok(A::decode(answer.get(5..).unwrap_or_default()).expect("a message of CRI"))
}

/// A gRPC message: one byte that says uncompressed, four of length, the message.
fn framed(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("a short message"));
    message.encode(&mut frame).expect("there is room");
    frame.freeze()
}

async fn asked(
    socket: &Path,
    method: &str,
    question: &Bytes,
) -> Result<Result<Vec<u8>, Said>, Box<dyn std::error::Error>> {
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let (service, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://localhost/runtime.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut body) = service.ready().await?.send_request(request, false)?;
    body.send_data(question.clone(), true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut answer = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        answer.extend_from_slice(&piece);
    }
    // An error alone comes in the head.
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    let value =
        |name: &str| trailers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    Ok(match value("grpc-status").as_deref() {
        Some("0") => Ok(answer),
        status => {
            Err(format!("{}: {}", status.unwrap_or("no status"), value("grpc-message").unwrap_or_default()))
        }
    })
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
}

/// Which namespaces are shared: 0 the pod's, 1 the container's own, 2 the node's.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Namespaces {
    #[prost(int32, tag = "1")]
    pub(crate) network: i32,
    #[prost(int32, tag = "2")]
    pub(crate) pid: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodSecurity {
    #[prost(message, optional, tag = "1")]
    pub(crate) namespaces: Option<Namespaces>,
    #[prost(bool, tag = "6")]
    pub(crate) privileged: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodLinux {
    #[prost(message, optional, tag = "2")]
    pub(crate) security: Option<PodSecurity>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<PodMetadata>,
    #[prost(string, tag = "2")]
    pub(crate) hostname: String,
    #[prost(string, tag = "3")]
    pub(crate) log_directory: String,
    #[prost(map = "string, string", tag = "7")]
    pub(crate) annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(crate) linux: Option<PodLinux>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RunPod {
    #[prost(message, optional, tag = "1")]
    pub(crate) config: Option<PodConfig>,
    #[prost(string, tag = "2")]
    pub(crate) handler: String,
}

/// The answer of `RunPodSandbox` and `CreateContainer`, and what most other calls want: one id.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Id {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Name {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mount {
    #[prost(string, tag = "1")]
    pub(crate) inside: String,
    #[prost(string, tag = "2")]
    pub(crate) host: String,
    #[prost(bool, tag = "3")]
    pub(crate) readonly: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Capabilities {
    #[prost(string, repeated, tag = "1")]
    pub(crate) add: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Security {
    #[prost(message, optional, tag = "1")]
    pub(crate) capabilities: Option<Capabilities>,
    #[prost(bool, tag = "2")]
    pub(crate) privileged: bool,
    #[prost(message, optional, tag = "3")]
    pub(crate) namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerLinux {
    #[prost(message, optional, tag = "2")]
    pub(crate) security: Option<Security>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    pub(crate) image: Option<Name>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) command: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) mounts: Vec<Mount>,
    #[prost(map = "string, string", tag = "10")]
    pub(crate) annotations: HashMap<String, String>,
    #[prost(string, tag = "11")]
    pub(crate) log_path: String,
    #[prost(message, optional, tag = "15")]
    pub(crate) linux: Option<ContainerLinux>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateContainer {
    #[prost(string, tag = "1")]
    pub(crate) pod: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pub(crate) pod_config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StopContainer {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(int64, tag = "2")]
    pub(crate) timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Exec {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) command: Vec<String>,
    #[prost(int64, tag = "3")]
    pub(crate) timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Output {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(crate) code: i32,
}

/// `PodSandboxStatus` and `ContainerStatus`, whose verbose answers carry `info`, JSON, in the same place.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AskStatus {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(bool, tag = "2")]
    pub(crate) verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    #[prost(map = "string, string", tag = "2")]
    pub(crate) info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AskImage {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<Name>,
}

/// Whether the image is known: what is known of it is not read.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Image {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(crate) image: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Nothing {}
