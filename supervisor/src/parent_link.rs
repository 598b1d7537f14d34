//! The worker's line to its parent, which holds what the worker must not: rights over the container's tables and cards. One
//! JSON message a datagram, bounded and typed; the worker names no set, no element and no card.

use crate::vault::Errand;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::time::Duration;
use terok_policy::Name;
use terok_policy::plan::Card;
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;

/// The longest question: a request for a signature with all that binds it to a session.
pub(crate) const LONGEST_QUESTION: usize = 64 << 10;
/// The longest answer or piece of news; a container has few cards.
pub(crate) const LONGEST_ANSWER: usize = 32 << 10;
/// Addresses of one answer, at most.
pub(crate) const ADDRESSES: usize = 64;

/// How long the parent may take: ten thousand rules are read, compared and loaded in a fraction of this.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the worker says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    /// Comes back with the answer.
    pub(crate) number: u64,
    /// What it wants.
    pub(crate) ask: Ask,
}

/// What the worker wants.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ask {
    /// Nothing: every service answers. The one word without an answer.
    Ready,
    /// Load what `live.json` says into the kernel's sets.
    Apply,
    /// Let nothing pass, although `live.json` could not be written.
    Block,
    /// Let packets to these addresses pass because an answer names them.
    Grant {
        /// The name that was asked for.
        name: Name,
        /// Seconds for which the container may keep the answer.
        ttl: u32,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// Start a helper for this. Its report goes another way; the answer only tells that it has ended.
    Vault(Errand),
}

/// What the parent says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Told {
    /// An answer.
    Answer {
        /// The question's.
        number: u64,
        /// Which of the addresses pass now (none were asked for with [`Ask::Apply`]), or why nothing was done.
        done: Result<Vec<IpAddr>, String>,
    },
    /// News.
    News(News),
}

/// What the parent says unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum News {
    /// Somebody else has changed the container's tables.
    Tampered {
        /// The difference that was found.
        what: String,
        /// The container is cut off since: it has a card by which it could leave.
        cut: bool,
    },
    /// The container's cards are these now.
    Cards(Vec<Card>),
}

/// The kernel's sets stay as they were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefusedByParent {
    /// The parent is gone: the worker serves on, but rights to change the kernel's rules are gone with it.
    #[error(
        "the supervisor's parent is gone, so rules for addresses cannot be changed; restart the container"
    )]
    Gone,
    /// The parent could not do it.
    #[error("the kernel's sets: {0}")]
    Failed(String),
}

/// The worker's end. [`ParentLink::listen`] must run for anything to be answered.
pub(crate) struct ParentLink {
    socket: UnixDatagram,
    next: Cell<u64>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Done>>>,
    gone: Cell<bool>,
}

type Done = Result<Vec<IpAddr>, RefusedByParent>;

impl ParentLink {
    /// A connected SEQPACKET socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = StdUnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(ParentLink {
            socket: UnixDatagram::from_std(socket)?,
            next: Cell::new(0),
            waiting: RefCell::default(),
            gone: Cell::new(false),
        })
    }

    /// One whose parent is gone.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        #[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
        let link = Self::new(terok_kernel::socket::message_pair().unwrap().1).unwrap();
        link.gone.set(true);
        link
    }

    /// Tells the parent that every service answers.
    pub(crate) async fn ready(&self) -> Result<(), RefusedByParent> {
        self.say(&Question { number: 0, ask: Ask::Ready }).await
    }

    /// Has the parent load what `live.json` says.
    pub(crate) async fn apply(&self) -> Result<(), RefusedByParent> {
        self.ask(Ask::Apply).await.map(drop)
    }

    /// Has the parent let nothing pass until it is to apply something else, whatever `live.json` says.
    pub(crate) async fn block(&self) -> Result<(), RefusedByParent> {
        self.ask(Ask::Block).await.map(drop)
    }

    /// Has the parent let packets to `addresses` pass because the answer for `name` will tell them, for `ttl` seconds or a
    /// little longer; returns those that do. The others are below the floor, not this name's to grant, or too many.
    pub(crate) async fn grant(&self, name: &Name, ttl: u32, addresses: &[IpAddr]) -> Done {
        let addresses = addresses[..addresses.len().min(ADDRESSES)].to_vec();
        self.ask(Ask::Grant { name: name.clone(), ttl, addresses }).await
    }

    /// Has the parent start a helper for `errand` under a number from [`ParentLink::number`]; returns when the helper has ended.
    pub(crate) async fn errand(
        &self,
        number: u64,
        errand: Errand,
        patience: Duration,
    ) -> Result<(), RefusedByParent> {
        self.exchange(number, Ask::Vault(errand), patience).await.map(drop)
    }

    /// A number that no other question has.
    pub(crate) fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    /// Receives what the parent says: answers go to who waits for them, news to `hear`. Returns when the parent is gone.
    pub(crate) async fn listen(&self, mut hear: impl FnMut(News)) {
        let mut buffer = vec![0; LONGEST_ANSWER];
        while let Ok(length @ 1..) = self.socket.recv(&mut buffer).await {
            match serde_json::from_slice(&buffer[..length]) {
                Ok(Told::News(news)) => hear(news),
                Ok(Told::Answer { number, done }) => {
                    // Who asked may have lost patience.
                    if let Some(asker) = self.waiting.borrow_mut().remove(&number) {
                        let _ = asker.send(done.map_err(RefusedByParent::Failed));
                    }
                }
                // Parent and worker are one program; this is one that was replaced under a running container's feet.
                Err(error) => eprintln!("{}: from the parent: {error}", terok_policy::layout::SUPERVISOR),
            }
        }
        self.gone.set(true);
        self.waiting.borrow_mut().clear();
    }

    async fn ask(&self, ask: Ask) -> Done {
        self.exchange(self.number(), ask, PATIENCE).await
    }

    async fn exchange(&self, number: u64, ask: Ask, patience: Duration) -> Done {
        if self.gone.get() {
            return Err(RefusedByParent::Gone);
        }
        let (asker, answer) = oneshot::channel();
        self.waiting.borrow_mut().insert(number, asker);
        let _place = Place { link: self, number };
        let exchange = async {
            self.say(&Question { number, ask }).await?;
            answer.await.unwrap_or(Err(RefusedByParent::Gone))
        };
        let late = || RefusedByParent::Failed("the parent does not answer".to_owned());
        tokio::time::timeout(patience, exchange).await.unwrap_or_else(|_| Err(late()))
    }

    async fn say(&self, question: &Question) -> Result<(), RefusedByParent> {
        let message =
            serde_json::to_vec(question).map_err(|error| RefusedByParent::Failed(error.to_string()))?;
        if message.len() > LONGEST_QUESTION {
            // The parent would take it for another program's.
            return Err(RefusedByParent::Failed("the question is too long".into()));
        }
        self.socket.send(&message).await.map(drop).map_err(|_| RefusedByParent::Gone)
    }
}

/// A question's place among those that wait, given up with the question.
struct Place<'a> {
    link: &'a ParentLink,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.link.waiting.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::rc::Rc;
    use terok_kernel::socket::message_pair;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    /// Runs `job` with a link that listens, the parent's end of it, and the news that came.
    fn linked<F: Future<Output = ()>>(
        paused: bool,
        job: impl FnOnce(Rc<ParentLink>, UnixDatagram, Rc<RefCell<Vec<News>>>) -> F,
    ) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(paused).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (ours, theirs) = message_pair().unwrap();
            let link = Rc::new(ParentLink::new(theirs).unwrap());
            let parent = StdUnixDatagram::from(ours);
            parent.set_nonblocking(true).unwrap();
            let heard: Rc<RefCell<Vec<News>>> = Rc::default();
            let (listening, into) = (link.clone(), heard.clone());
            tokio::task::spawn_local(async move {
                listening.listen(|news| into.borrow_mut().push(news)).await;
            });
            job(link, UnixDatagram::from_std(parent).unwrap(), heard).await;
        });
    }

    async fn question(parent: &UnixDatagram) -> Question {
        let mut buffer = vec![0; LONGEST_QUESTION];
        let length = parent.recv(&mut buffer).await.unwrap();
        serde_json::from_slice(&buffer[..length]).unwrap()
    }

    async fn tell(parent: &UnixDatagram, told: &Told) {
        parent.send(&serde_json::to_vec(told).unwrap()).await.unwrap();
    }

    #[test]
    fn each_question_gets_its_own_answer_whatever_comes_first() {
        linked(false, async |link, parent, heard| {
            let name: Name = "a.example".parse().unwrap();
            let answers = async {
                let mut both = [question(&parent).await, question(&parent).await];
                both.sort_by_key(|question| question.ask != Ask::Apply);
                let [first, second] = both;
                assert_eq!(first.ask, Ask::Apply);
                let wanted = Ask::Grant { name: name.clone(), ttl: 60, addresses: vec![A] };
                assert_eq!(second.ask, wanted);
                tell(&parent, &Told::Answer { number: second.number, done: Ok(vec![A]) }).await;
                tell(&parent, &Told::News(News::Tampered { what: "x".into(), cut: true })).await;
                tell(&parent, &Told::Answer { number: first.number, done: Err("no".into()) }).await;
            };
            let asked = [A];
            let (applied, granted, ()) = tokio::join!(link.apply(), link.grant(&name, 60, &asked), answers);
            assert_eq!(applied, Err(RefusedByParent::Failed("no".into())));
            assert_eq!(granted, Ok(vec![A]));
            assert_eq!(heard.borrow().len(), 1);
            assert!(link.waiting.borrow().is_empty());
        });
    }

    #[test]
    fn an_answer_that_comes_too_late_is_not_the_next_ones() {
        linked(true, async |link, parent, _| {
            let late = link.apply().await;
            assert!(matches!(late, Err(RefusedByParent::Failed(_))), "{late:?}");
            tokio::time::resume();
            let first = question(&parent).await;
            let answers = async {
                let second = question(&parent).await;
                tell(&parent, &Told::Answer { number: first.number, done: Ok(vec![]) }).await;
                tell(&parent, &Told::Answer { number: second.number, done: Err("full".into()) }).await;
            };
            let (second, ()) = tokio::join!(link.apply(), answers);
            assert_eq!(second, Err(RefusedByParent::Failed("full".into())));
        });
    }

    #[test]
    fn whoever_waits_hears_that_the_parent_is_gone() {
        linked(false, async |link, parent, _| {
            let (waited, ()) = tokio::join!(link.apply(), async {
                question(&parent).await;
                drop(parent);
            });
            assert_eq!(waited, Err(RefusedByParent::Gone));
            assert_eq!(link.apply().await, Err(RefusedByParent::Gone));
        });
    }

    #[test]
    fn the_longest_question_fits() {
        let name: Name = [["a"; 63].concat(), ["b"; 63].concat(), ["c"; 63].concat(), ["d"; 61].concat()]
            .join(".")
            .parse()
            .unwrap();
        let addresses = vec![IpAddr::from([0xffff_u16; 8]); ADDRESSES];
        let question = Question { number: u64::MAX, ask: Ask::Grant { name, ttl: u32::MAX, addresses } };
        assert!(serde_json::to_vec(&question).unwrap().len() <= LONGEST_QUESTION);
    }
}
