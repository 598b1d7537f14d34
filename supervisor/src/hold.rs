//! Connections that no rule speaks of, waiting for an operator's verdict (`terok.shield.hold`) before anything is dialled.
//! Those to one target wait for one verdict. The table only: what an answer means is the proxy's to find out.

use crate::context::unix_millis;
use crate::flows::{Host, Target};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use terok_policy::rule::{self, Cidr, Ports, Proto};
use terok_policy::{Rule, control};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Targets that wait at a time: more, nobody reads.
const TARGETS: usize = 32;
/// Connections that wait at a time.
const CONNECTIONS: usize = 256;

/// New questions a minute: a person reads them, and each is a line of the log.
const BUDGET: usize = 60;
const BUDGET_WINDOW: Duration = Duration::from_secs(60);

/// What waits.
#[derive(Default)]
pub(crate) struct Hold {
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    open: BTreeMap<u64, Rc<Question>>,
    connections: usize,
    /// When the questions of the last window were asked, oldest first.
    asked: VecDeque<Instant>,
}

struct Question {
    id: u64,
    target: Target,
    /// Unix milliseconds.
    since: u64,
    until: u64,
    deadline: Instant,
    connections: Cell<u64>,
    answer: Cell<Option<Answer>>,
    answered: Notify,
}

/// What ends a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// An operator lets these connections through.
    Allow,
    /// An operator does not.
    Deny,
    /// There is a rule, or a state of the shield, that decides by now.
    Rules,
    /// Nobody answered in time.
    Timeout,
}

/// A connection's place among those that wait; dropped when it waits no more.
pub(crate) struct Place<'a> {
    hold: &'a Hold,
    question: Rc<Question>,
    /// The first connection to its target: the question is new.
    pub(crate) first: bool,
}

impl Hold {
    /// Begins with numbers that no table before had: a word on what waited there must not decide about what waits here, after
    /// the worker or the container was started again. A second has more numbers than a minute has questions.
    pub(crate) fn number_from(&self, unix_seconds: u64) {
        self.inner.borrow_mut().last = (unix_seconds % 10_000 + 1) * 100;
    }

    /// Enters a connection to `target`, for `patience` where it is the first. `None`: too many wait, or have waited lately.
    pub(crate) fn enter(&self, target: &Target, patience: Duration, most: usize) -> Option<Place<'_>> {
        let inner = &mut *self.inner.borrow_mut();
        if inner.connections >= CONNECTIONS.min(most) {
            return None;
        }
        let known = inner.open.values().find(|question| question.target == *target).cloned();
        let first = known.is_none();
        let question = match known {
            Some(question) => question,
            None if inner.open.len() >= TARGETS || !inner.may_ask(Instant::now()) => return None,
            None => {
                inner.last += 1;
                let since = unix_millis();
                let question = Rc::new(Question {
                    id: inner.last,
                    target: target.clone(),
                    since,
                    until: since + u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
                    deadline: Instant::now() + patience,
                    connections: Cell::new(0),
                    answer: Cell::new(None),
                    answered: Notify::new(),
                });
                inner.open.insert(question.id, question.clone());
                question
            }
        };
        inner.connections += 1;
        question.connections.set(question.connections.get() + 1);
        Some(Place { hold: self, question, first })
    }

    /// Answers `id`; `false` where nothing waits under it.
    pub(crate) fn settle(&self, id: u64, answer: Answer) -> bool {
        let Some(question) = self.inner.borrow_mut().open.remove(&id) else { return false };
        question.answer.set(Some(answer));
        question.answered.notify_waiters();
        true
    }

    /// Those that wait, oldest first.
    pub(crate) fn targets(&self) -> Vec<(u64, Target)> {
        let inner = self.inner.borrow();
        inner.open.values().map(|question| (question.id, question.target.clone())).collect()
    }

    /// Those that wait, as the control interface shows them.
    pub(crate) fn waiting(&self) -> Vec<control::Waiting> {
        self.inner.borrow().open.values().map(|question| question.shown()).collect()
    }

    /// What waits under `id`, and the rule that would speak of it.
    pub(crate) fn question(&self, id: u64) -> Option<(Target, Rule)> {
        let inner = self.inner.borrow();
        let target = inner.open.get(&id)?.target.clone();
        let rule = rule(&target)?;
        Some((target, rule))
    }
}

impl Inner {
    /// Whether the budget has room for a question `now`, which is then spent.
    fn may_ask(&mut self, now: Instant) -> bool {
        while self.asked.front().is_some_and(|&asked| now.duration_since(asked) >= BUDGET_WINDOW) {
            self.asked.pop_front();
        }
        let room = self.asked.len() < BUDGET;
        if room {
            self.asked.push_back(now);
        }
        room
    }
}

impl Place<'_> {
    /// Which question it is.
    pub(crate) fn id(&self) -> u64 {
        self.question.id
    }

    /// As the control interface shows it.
    pub(crate) fn shown(&self) -> control::Waiting {
        self.question.shown()
    }

    /// Waits for the answer. The first to see the time pass gives it, and `true` with it.
    pub(crate) async fn answer(&self) -> (Answer, bool) {
        let answered = self.question.answered.notified();
        if let Some(answer) = self.question.answer.get() {
            return (answer, false);
        }
        let in_time = timeout_at(self.question.deadline, answered).await.is_ok();
        let first = !in_time && self.hold.settle(self.question.id, Answer::Timeout);
        (self.question.answer.get().unwrap_or(Answer::Timeout), first)
    }

    /// Leaves before there was an answer; whether nobody waits for it any more.
    pub(crate) fn leave(self) -> bool {
        self.question.answer.get().is_none() && self.question.connections.get() == 1
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let inner = &mut *self.hold.inner.borrow_mut();
        inner.connections -= 1;
        let left = self.question.connections.get() - 1;
        self.question.connections.set(left);
        if left == 0 && self.question.answer.get().is_none() {
            inner.open.remove(&self.question.id);
        }
    }
}

impl Question {
    fn shown(&self) -> control::Waiting {
        control::Waiting {
            id: self.id,
            target: self.target.to_string(),
            rule: rule(&self.target).map(|rule| rule.to_string()).unwrap_or_default(),
            since: self.since,
            until: self.until,
            connections: self.connections.get(),
        }
    }
}

/// The narrowest rule that speaks of `target`; none for the host's own ports, which are not asked for.
fn rule(target: &Target) -> Option<Rule> {
    let to = match &target.host {
        Host::Name(name) => rule::Target::Name(name.clone()),
        Host::Literal(ip) => rule::Target::Net(Cidr::host(*ip)),
        Host::Loopback => return None,
    };
    let ports = Ports::new(vec![(target.port, target.port)]);
    Some(Rule { target: to, ports, proto: Proto::Tcp, direct: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    const LONG: Duration = Duration::from_secs(30);

    fn name(text: &str, port: u16) -> Target {
        Target { host: Host::Name(text.parse().unwrap()), port }
    }

    #[test]
    fn one_target_is_one_question_whatever_number_asks() {
        let hold = Hold::default();
        let (target, other) = (name("a.example", 443), name("a.example", 22));
        let first = hold.enter(&target, LONG, 9).unwrap();
        let second = hold.enter(&target, LONG, 9).unwrap();
        let third = hold.enter(&other, LONG, 9).unwrap();
        assert_eq!((first.id(), second.id(), third.id()), (1, 1, 2));
        assert_eq!((first.first, second.first, third.first), (true, false, true));
        let shown = hold.waiting();
        assert_eq!((shown[0].connections, shown[0].target.as_str()), (2, "a.example:443"));
        assert_eq!(shown[0].until - shown[0].since, 30_000);
    }

    #[test]
    fn a_number_is_not_that_of_another_target_in_an_earlier_table() {
        let asked = |since: u64, questions: u16| -> Vec<u64> {
            let hold = Hold::default();
            hold.number_from(since);
            let ids = (0..questions).map(|port| hold.enter(&name("a.example", port), LONG, 9).unwrap().id());
            ids.collect()
        };
        let (before, after) = (asked(1_795_217_943, BUDGET as u16), asked(1_795_217_944, 1));
        assert!(!before.contains(&after[0]), "{after:?}");
    }

    #[test]
    fn the_rule_is_of_that_port_alone() {
        let rule = |target: &Target| super::rule(target).unwrap().to_string();
        assert_eq!(rule(&name("a.example", 443)), "a.example:443");
        let literal = |ip: &str| Target { host: Host::Literal(ip.parse::<IpAddr>().unwrap()), port: 22 };
        assert_eq!(rule(&literal("192.0.2.1")), "192.0.2.1:22");
        let v6: Rule = rule(&literal("2001:db8::1")).parse().unwrap();
        assert_eq!(v6.ports, Ports(vec![(22, 22)]));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_answer_reaches_all_that_wait_and_is_given_once() {
        let hold = Hold::default();
        let target = name("a.example", 443);
        let (first, second) = (hold.enter(&target, LONG, 9).unwrap(), hold.enter(&target, LONG, 9).unwrap());
        let answers = async { tokio::join!(first.answer(), second.answer()) };
        let (answers, settled) = tokio::join!(answers, async { hold.settle(1, Answer::Deny) });
        assert_eq!((answers, settled), (((Answer::Deny, false), (Answer::Deny, false)), true));
        assert!(!hold.settle(1, Answer::Allow), "answered");
        assert_eq!(first.answer().await.0, Answer::Deny);
        drop((first, second));
        assert_eq!(hold.enter(&target, LONG, 9).unwrap().id(), 2, "a later connection asks again");
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn the_time_of_the_first_is_the_time_of_all_and_one_tells_of_its_end() {
        let hold = Hold::default();
        let target = name("a.example", 443);
        let first = hold.enter(&target, LONG, 9).unwrap();
        tokio::time::advance(Duration::from_secs(20)).await;
        let second = hold.enter(&target, LONG, 9).unwrap();
        let start = Instant::now();
        let (one, other) = tokio::join!(first.answer(), second.answer());
        assert_eq!((one.0, other.0), (Answer::Timeout, Answer::Timeout));
        assert!(one.1 ^ other.1);
        assert_eq!(start.elapsed().as_secs(), 10);
        assert!(hold.waiting().is_empty());
    }

    #[test]
    fn who_leaves_makes_room_and_the_last_takes_the_question_along() {
        let hold = Hold::default();
        let target = name("a.example", 443);
        let (first, second) = (hold.enter(&target, LONG, 2).unwrap(), hold.enter(&target, LONG, 2).unwrap());
        assert!(hold.enter(&target, LONG, 2).is_none(), "no room");
        assert!(!first.leave());
        assert_eq!(hold.waiting()[0].connections, 1);
        assert!(second.leave());
        assert!(hold.waiting().is_empty() && hold.question(1).is_none());
    }

    #[test]
    fn targets_beyond_the_limit_do_not_wait_but_those_that_do_take_more() {
        let hold = Hold::default();
        let port = |port| name("a.example", port);
        let places: Vec<_> =
            (0..TARGETS as u16).map(|n| hold.enter(&port(n), LONG, CONNECTIONS).unwrap()).collect();
        assert!(hold.enter(&port(TARGETS as u16), LONG, CONNECTIONS).is_none());
        assert!(hold.enter(&port(0), LONG, CONNECTIONS).is_some());
        drop(places);
        assert!(hold.enter(&port(TARGETS as u16), LONG, CONNECTIONS).is_some());
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn who_asks_again_and_again_is_not_heard_for_a_while() {
        let hold = Hold::default();
        let target = name("a.example", 443);
        for n in 1..=BUDGET as u64 {
            assert_eq!(hold.enter(&target, LONG, 9).unwrap().id(), n);
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(hold.enter(&target, LONG, 9).is_none());
        tokio::time::advance(BUDGET_WINDOW).await;
        assert!(hold.enter(&target, LONG, 9).is_some());
    }
}
