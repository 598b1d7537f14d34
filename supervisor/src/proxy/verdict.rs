//! The verdict on a connection before anything is done for it: the rules', or where they leave the question open, an
//! operator's, which the connection waits for (`terok.shield.hold`).

use super::Proxy;
use super::connection::refusal;
use super::relay::Socket;
use crate::audit::{Facts as _, event};
use crate::context::is_open_question;
use crate::flows::{Host, Target};
use crate::hold::Answer;
use crate::readiness::{hung_up, readable};
use std::os::fd::AsFd as _;
use std::time::Duration;
use terok_policy::Verdict;
use terok_policy::audit::{Event, Kind};
use terok_policy::judge::Reason;

/// Of all connections, this part may wait for a verdict: the rest is for those that need none.
const WAITING: usize = 4;

/// The verdict on `target`, an operator's if need be. What comes back holds until the caller waits again.
pub(super) async fn judge(proxy: &Proxy, client: &Socket, target: &Target) -> Result<Verdict, Box<Event>> {
    let context = &proxy.context;
    let refuse = |verdict| refusal(target).verdict(verdict);
    let verdict = context.judge(&target.query());
    if verdict.allows() {
        return Ok(verdict);
    }
    if !context.holds(&target.query(), &verdict) {
        return Err(Box::new(refuse(&verdict)));
    }
    if let Host::Literal(ip) = target.host
        && let Some(floor) = proxy.floor(ip)
    {
        return Err(Box::new(refusal(target).reason(Reason::Floor).with("floor", floor.to_string())));
    }
    let patience = Duration::from_secs(context.config.policy.hold.into());
    let Some(place) = context.hold.enter(target, patience, proxy.limit / WAITING) else {
        return Err(Box::new(refuse(&verdict).with("hold", "too many wait")));
    };
    // The client's bytes stay unread, so its socket is watched through a descriptor of its own.
    let Ok(watched) = client.as_fd().try_clone_to_owned().and_then(readable) else {
        return Err(Box::new(refuse(&verdict).with("hold", "out of descriptors")));
    };
    let (id, line) =
        (place.id(), |action| event(Kind::Verdict, action, target.to_string()).with("id", place.id()));
    if place.first {
        let shown = place.shown();
        let line = line("wait").with("rule", shown.rule).with("until", shown.until);
        if context.audit.record(line).is_err() {
            return Err(Box::new(refusal(target).reason(Reason::AuditUnwritable)));
        }
    }
    let answer = tokio::select! {
        biased;
        (answer, first) = place.answer() => {
            if answer == Answer::Timeout && first {
                let _ = context.audit.record(line("timeout"));
            }
            answer
        }
        // A client that sends no more while it waits has given up: nothing was answered that it could still read.
        () = hung_up(&watched) => {
            let gone = line("gone");
            if place.leave() {
                let _ = context.audit.record(gone);
            }
            return Err(Box::new(refuse(&verdict).with("hold", "gone").with("id", id)));
        }
    };
    // Rules may have changed since the answer was given.
    match (context.judge(&target.query()), answer) {
        (verdict, _) if verdict.allows() => Ok(verdict),
        (verdict, Answer::Allow) if is_open_question(&verdict) => Ok(Verdict::Operator),
        (verdict, Answer::Timeout) if is_open_question(&verdict) => {
            Err(Box::new(refusal(target).reason(Reason::Unanswered).with("id", id)))
        }
        (verdict, Answer::Deny) if is_open_question(&verdict) => {
            Err(Box::new(refusal(target).reason(Reason::OperatorDenied).with("id", id)))
        }
        (verdict, _) => Err(Box::new(refuse(&verdict).with("id", id))),
    }
}
