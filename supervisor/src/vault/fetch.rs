//! The worker's end of the vault: what was fetched is used again while the vault's files are as they were and its time is not over; otherwise a
//! helper is asked for, one at a time for each grant however many requests wait.

use super::{AgentKey, Credential, Errand, Fetched, Report, Stamp, Trouble};
use crate::context::unix_seconds;
use crate::parent_link::{ParentLink, RefusedByParent};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

/// The longest report: a credential is 64 KiB at most, and JSON may write a character as six.
const LONGEST_REPORT: usize = 448 << 10;
/// How long a helper may take in all, with its wait for others: the parent ends it before.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a report may still be under way when its helper has ended: it was written before.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// How long a trouble is taken for lasting while the files stand as they were: what one cannot see in them may be over.
const LASTING: Duration = Duration::from_secs(5);
/// The same of a failure.
const FAILURE: Duration = Duration::from_secs(1);

/// The worker's end. [`Vault::listen`] must run for anything to be fetched.
pub(crate) struct Vault {
    source: Source,
    credentials: RefCell<HashMap<usize, Rc<Slot<Credential>>>>,
    keys: Slot<Vec<AgentKey>>,
}

enum Source {
    Parent {
        link: Rc<ParentLink>,
        line: UnixDatagram,
        waiting: RefCell<HashMap<u64, oneshot::Sender<Report>>>,
    },
    #[cfg(test)]
    Double(Box<Answer>),
}

#[cfg(test)]
type Answer = dyn Fn(&Errand) -> Result<Fetched, Trouble>;

/// What is known of one thing, and whose turn it is to ask.
struct Slot<T> {
    turn: tokio::sync::Mutex<()>,
    known: RefCell<Option<Known<T>>>,
}

struct Known<T> {
    /// When it was asked for.
    asked: Instant,
    /// When it was answered.
    since: Instant,
    stamp: Stamp,
    done: Result<Rc<T>, Trouble>,
}

impl Vault {
    /// One that asks through `link` and hears on `line`, a connected SEQPACKET socket.
    pub(crate) fn new(link: Rc<ParentLink>, line: OwnedFd) -> io::Result<Self> {
        let line = StdUnixDatagram::from(line);
        line.set_nonblocking(true)?;
        Ok(Self::of(Source::Parent {
            link,
            line: UnixDatagram::from_std(line)?,
            waiting: RefCell::default(),
        }))
    }

    /// One that `answer` answers for, each time anew.
    #[cfg(test)]
    pub(crate) fn answered_by(answer: impl Fn(&Errand) -> Result<Fetched, Trouble> + 'static) -> Self {
        Self::of(Source::Double(Box::new(answer)))
    }

    fn of(source: Source) -> Self {
        Vault { source, credentials: RefCell::default(), keys: Slot::default() }
    }

    /// The credential of a grant, position in [`terok_policy::Policy::vault`], as it is now.
    pub(crate) async fn credential(&self, grant: usize) -> Result<Rc<Credential>, Trouble> {
        self.fetch(grant, None).await
    }

    /// Another credential for a grant whose `revision` the provider has refused: one that was renewed meanwhile, or is now. The same revision again
    /// where nothing can be renewed.
    pub(crate) async fn refused(&self, grant: usize, revision: u64) -> Result<Rc<Credential>, Trouble> {
        self.fetch(grant, Some(revision)).await
    }

    /// The public keys of the SSH grants that are in the vault.
    pub(crate) async fn keys(&self) -> Result<Rc<Vec<AgentKey>>, Trouble> {
        let ask = async || {
            let (stamp, done) = self.ask(Errand::Keys).await;
            (
                stamp,
                done.and_then(|fetched| match fetched {
                    Fetched::Keys(keys) => Ok(keys),
                    _ => Err(mismatch()),
                }),
            )
        };
        self.keys.get(|_| true, ask).await
    }

    /// A signature with the key of an SSH grant: SSH wire form, base64. Takes the parts of [`Errand::Sign`].
    pub(crate) async fn sign(
        &self,
        grant: usize,
        bindings: Vec<String>,
        data: String,
        flags: u32,
    ) -> Result<String, Trouble> {
        match self.ask(Errand::Sign { grant, bindings, data, flags }).await.1? {
            Fetched::Signature(signature) => Ok(signature),
            _ => Err(mismatch()),
        }
    }

    /// Receives what helpers report. Returns when the parent's end is closed.
    pub(crate) async fn listen(&self) {
        let (line, waiting) = match &self.source {
            Source::Parent { line, waiting, .. } => (line, waiting),
            #[cfg(test)]
            Source::Double(_) => return,
        };
        // Only what is written to of it takes memory.
        let mut buffer = Zeroizing::new(vec![0; LONGEST_REPORT]);
        while let Ok(length @ 1..) = line.recv(&mut buffer).await {
            match serde_json::from_slice::<Report>(&buffer[..length]) {
                Ok(report) => {
                    // Who asked may be gone: a client that hung up.
                    if let Some(asker) = waiting.borrow_mut().remove(&report.number) {
                        let _ = asker.send(report);
                    }
                }
                // Not the error's text, which may cite a secret.
                Err(_) => {
                    eprintln!("{}: a report from the vault cannot be read", terok_policy::layout::SUPERVISOR)
                }
            }
            zeroize::Zeroize::zeroize(&mut buffer[..length]);
        }
        waiting.borrow_mut().clear();
    }

    async fn fetch(&self, grant: usize, refused: Option<u64>) -> Result<Rc<Credential>, Trouble> {
        let slot = self.credentials.borrow_mut().entry(grant).or_default().clone();
        let good = |credential: &Credential| {
            refused != Some(credential.revision)
                && credential.until.is_none_or(|until| unix_seconds() < until)
        };
        let ask = async || {
            let (stamp, done) = self.ask(Errand::Credential { grant, refused }).await;
            (
                stamp,
                done.and_then(|fetched| match fetched {
                    Fetched::Credential(credential) => Ok(credential),
                    _ => Err(mismatch()),
                }),
            )
        };
        slot.get(good, ask).await
    }

    /// Has a helper run an errand.
    async fn ask(&self, errand: Errand) -> (Stamp, Result<Fetched, Trouble>) {
        let asked = match &self.source {
            Source::Parent { link, waiting, .. } => {
                let number = link.number();
                let (asker, report) = oneshot::channel();
                waiting.borrow_mut().insert(number, asker);
                let _place = Place { waiting, number };
                tokio::time::timeout(PATIENCE, hear(link, number, errand, report)).await
            }
            #[cfg(test)]
            Source::Double(answer) => return (Stamp::none(), answer(&errand)),
        };
        match asked {
            Ok(Ok(Report { stamp, done, .. })) => (stamp, done),
            Ok(Err(trouble)) => (Stamp::none(), Err(trouble)),
            Err(_) => (
                Stamp::none(),
                Err(Trouble::Failed("the vault does not answer; see the container's log file".into())),
            ),
        }
    }
}

/// The report `number`, or why there will be none: the parent tells when the helper has ended.
async fn hear(
    link: &ParentLink,
    number: u64,
    errand: Errand,
    mut report: oneshot::Receiver<Report>,
) -> Result<Report, Trouble> {
    let lost =
        || Trouble::Failed("a helper of the vault ended without a word; see the container's log file".into());
    let ended = tokio::select! {
        biased;
        report = &mut report => return report.map_err(|_| lost()),
        ended = link.errand(number, errand, PATIENCE) => ended,
    };
    ended.map_err(|error| match error {
        RefusedByParent::Gone => Trouble::Failed(
            "the supervisor's parent is gone, so the vault cannot be read; restart the container".into(),
        ),
        RefusedByParent::Failed(reason) => Trouble::Failed(format!("the vault cannot be read: {reason}")),
    })?;
    tokio::time::timeout(UNDER_WAY, report).await.ok().and_then(Result::ok).ok_or_else(lost)
}

/// A report's place among those that are waited for, given up with the errand.
struct Place<'a> {
    waiting: &'a RefCell<HashMap<u64, oneshot::Sender<Report>>>,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.borrow_mut().remove(&self.number);
    }
}

impl<T> Slot<T> {
    /// What is known and `good`, where it stands still, or was asked for after `arrival`: then it cannot be older than the wish for it.
    fn known(&self, good: impl Fn(&T) -> bool, arrival: Instant) -> Option<Result<Rc<T>, Trouble>> {
        let known = self.known.borrow();
        let Known { asked, since, stamp, done } = known.as_ref()?;
        let lasts = match done {
            Ok(value) if !good(value) => return None,
            Ok(_) => true,
            Err(Trouble::Failed(_)) => since.elapsed() < FAILURE,
            Err(_) => since.elapsed() < LASTING,
        };
        (*asked >= arrival || (lasts && stamp.is_current())).then(|| done.clone())
    }

    /// What is known and `good`, or what it is to `ask`, in turn.
    async fn get(
        &self,
        good: impl Fn(&T) -> bool,
        ask: impl AsyncFnOnce() -> (Stamp, Result<T, Trouble>),
    ) -> Result<Rc<T>, Trouble> {
        let arrival = Instant::now();
        if let Some(done) = self.known(&good, arrival) {
            return done;
        }
        let _turn = self.turn.lock().await;
        if let Some(done) = self.known(&good, arrival) {
            return done;
        }
        let asked = Instant::now();
        let (stamp, done) = ask().await;
        let done = done.map(Rc::new);
        self.known.replace(Some(Known { asked, since: Instant::now(), stamp, done: done.clone() }));
        done
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Slot { turn: tokio::sync::Mutex::default(), known: RefCell::default() }
    }
}

fn mismatch() -> Trouble {
    Trouble::Failed("the vault answered something else; restart the container".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parent_link::{Ask, Question, Told};
    use std::path::PathBuf;
    use terok_kernel::socket::message_pair;
    use terok_policy::provider::CredentialType;

    /// The parent's ends of both lines.
    struct Parent {
        link: UnixDatagram,
        line: UnixDatagram,
        store: PathBuf,
    }

    impl Parent {
        async fn order(&self) -> (u64, Errand) {
            let mut buffer = vec![0; 64 << 10];
            let length = self.link.recv(&mut buffer).await.unwrap();
            match serde_json::from_slice(&buffer[..length]).unwrap() {
                Question { number, ask: Ask::Vault(errand) } => (number, errand),
                other => panic!("{other:?}"),
            }
        }

        async fn report(&self, number: u64, done: Result<Fetched, Trouble>) {
            let report = Report { number, stamp: Stamp::take(std::slice::from_ref(&self.store)), done };
            self.line.send(&serde_json::to_vec(&report).unwrap()).await.unwrap();
        }

        async fn ended(&self, number: u64, done: Result<(), String>) {
            let told = Told::Answer { number, done: done.map(|()| Vec::new()) };
            self.link.send(&serde_json::to_vec(&told).unwrap()).await.unwrap();
        }
    }

    fn key(revision: u64) -> Fetched {
        let secret = Zeroizing::new(format!("secret-{revision}"));
        Fetched::Credential(Credential {
            kind: CredentialType::Key,
            user: String::new(),
            secret,
            revision,
            until: None,
        })
    }

    fn end(line: OwnedFd) -> UnixDatagram {
        let line = StdUnixDatagram::from(line);
        line.set_nonblocking(true).unwrap();
        UnixDatagram::from_std(line).unwrap()
    }

    fn linked<F: Future<Output = ()>>(job: impl FnOnce(Rc<Vault>, Parent) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("vault.db");
        std::fs::write(&store, "1").unwrap();
        std::thread::sleep(Duration::from_millis(60));
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let ((ours, theirs), (reports, line)) = (message_pair().unwrap(), message_pair().unwrap());
            let link = Rc::new(ParentLink::new(theirs).unwrap());
            let vault = Rc::new(Vault::new(link.clone(), line).unwrap());
            tokio::task::spawn_local(async move { link.listen(|_| {}).await });
            let reported = vault.clone();
            tokio::task::spawn_local(async move { reported.listen().await });
            job(vault, Parent { link: end(ours), line: end(reports), store }).await;
        });
    }

    #[test]
    fn two_hundred_that_want_one_credential_ask_once() {
        linked(async |vault, parent| {
            let all: Vec<_> = (0..200)
                .map(|_| {
                    let vault = vault.clone();
                    tokio::task::spawn_local(async move { vault.credential(0).await.unwrap().revision })
                })
                .collect();
            let (number, errand) = parent.order().await;
            assert_eq!(errand, Errand::Credential { grant: 0, refused: None });
            parent.report(number, Ok(key(7))).await;
            for one in all {
                assert_eq!(one.await.unwrap(), 7);
            }
            assert!(tokio::time::timeout(Duration::from_millis(20), parent.order()).await.is_err());
        });
    }

    #[test]
    fn those_that_wait_share_a_failure_although_it_stands_for_nothing_later() {
        linked(async |vault, parent| {
            let all: Vec<_> = (0..200)
                .map(|_| {
                    let vault = vault.clone();
                    tokio::task::spawn_local(async move { vault.credential(0).await.err() })
                })
                .collect();
            // The first one's failure, and that of a question put when all others waited.
            for _ in 0..2 {
                let (number, _) = parent.order().await;
                parent.ended(number, Err("its helper took too long".into())).await;
            }
            for one in all {
                assert!(matches!(one.await.unwrap(), Some(Trouble::Failed(_))));
            }
            let answer = async {
                let (number, _) = parent.order().await;
                parent.report(number, Ok(key(1))).await;
            };
            let (later, ()) = tokio::join!(vault.credential(0), answer);
            assert!(later.is_ok());
        });
    }

    #[test]
    fn what_was_fetched_serves_until_the_vault_changes() {
        linked(async |vault, parent| {
            let answer = async |revision| {
                let (number, _) = parent.order().await;
                parent.report(number, Ok(key(revision))).await;
            };
            let (first, ()) = tokio::join!(vault.credential(0), answer(1));
            assert_eq!(first.unwrap().revision, 1);
            assert_eq!(vault.credential(0).await.unwrap().revision, 1);
            std::fs::write(&parent.store, "2").unwrap();
            let (second, ()) = tokio::join!(vault.credential(0), answer(2));
            assert_eq!(second.unwrap().revision, 2);
        });
    }

    #[test]
    fn a_credential_is_not_used_beyond_its_time() {
        linked(async |vault, parent| {
            let answer = async |until| {
                let (number, _) = parent.order().await;
                let Fetched::Credential(credential) = key(1) else { unreachable!() };
                parent.report(number, Ok(Fetched::Credential(Credential { until, ..credential }))).await;
            };
            let (first, ()) = tokio::join!(vault.credential(0), answer(Some(unix_seconds())));
            assert!(first.is_ok());
            let (second, ()) = tokio::join!(vault.credential(0), answer(Some(unix_seconds() + 60)));
            assert!(second.is_ok());
            assert!(vault.credential(0).await.is_ok());
        });
    }

    #[test]
    fn a_refused_revision_is_asked_for_anew_unless_a_newer_one_is_known() {
        linked(async |vault, parent| {
            let answer = async |refused, revision| {
                let (number, errand) = parent.order().await;
                assert_eq!(errand, Errand::Credential { grant: 0, refused });
                parent.report(number, Ok(key(revision))).await;
            };
            let (_, ()) = tokio::join!(vault.credential(0), answer(None, 1));
            let (renewed, ()) = tokio::join!(vault.refused(0, 1), answer(Some(1), 2));
            assert_eq!(renewed.unwrap().revision, 2);
            // Another request with the old token was refused meanwhile.
            assert_eq!(vault.refused(0, 1).await.unwrap().revision, 2);
        });
    }

    #[test]
    fn a_trouble_is_told_at_once_while_the_vault_stays_as_it_was() {
        linked(async |vault, parent| {
            let locked = || Trouble::Locked("the vault is locked; run: terok vault unlock".into());
            let answer = async |done| {
                let (number, _) = parent.order().await;
                parent.report(number, done).await;
            };
            let (first, ()) = tokio::join!(vault.credential(0), answer(Err(locked())));
            assert_eq!(first.err(), Some(locked()));
            assert_eq!(vault.credential(0).await.err(), Some(locked()));
            std::fs::write(&parent.store, "unlocked").unwrap();
            let (second, ()) = tokio::join!(vault.credential(0), answer(Ok(key(1))));
            assert!(second.is_ok());
        });
    }

    #[test]
    fn a_helper_that_dies_without_a_word_is_a_failure_and_the_next_one_is_asked() {
        linked(async |vault, parent| {
            let (done, ()) = tokio::join!(vault.sign(0, vec![], "AAAA".into(), 0), async {
                let (number, _) = parent.order().await;
                parent.ended(number, Err("its helper failed".into())).await;
            });
            assert_eq!(done, Err(Trouble::Failed("the vault cannot be read: its helper failed".into())));
            let (done, ()) = tokio::join!(vault.sign(0, vec![], "AAAA".into(), 0), async {
                let (number, _) = parent.order().await;
                // The end is heard of first.
                parent.ended(number, Ok(())).await;
                tokio::task::yield_now().await;
                parent.report(number, Ok(Fetched::Signature("c2ln".into()))).await;
            });
            assert_eq!(done, Ok("c2ln".into()));
        });
    }

    #[test]
    fn an_answer_of_another_kind_is_refused() {
        linked(async |vault, parent| {
            let (done, ()) = tokio::join!(vault.credential(0), async {
                let (number, _) = parent.order().await;
                parent.report(number, Ok(Fetched::Keys(vec![]))).await;
            });
            assert_eq!(done.err(), Some(mismatch()));
        });
    }
}
