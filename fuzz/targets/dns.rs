//! A DNS question as a container may send it: answering never panics, a reply carries the question's id, fits into what
//! every client takes, and is itself no question that would be answered again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::IpAddr;
use terok_policy::Name;
use terok_supervisor::dns::answer::{Asked, Known, Received, read};

/// What may be known of what is asked: as much of the reply as possible is built.
fn known(asked: &Asked) -> Vec<Known> {
    match asked {
        Asked::Name(name) => {
            assert_eq!(name.as_str().parse::<Name>().as_ref(), Ok(name));
            let v4 = (0..40).map(|n| IpAddr::from([192, 0, 2, n]));
            let v6 = (0..40).map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]));
            vec![
                Known::Virtual(300),
                Known::Provisional(300),
                Known::Real(v4.chain(v6).collect(), u32::MAX),
                Known::Loopback,
                Known::NotNow,
                Known::Failed,
            ]
        }
        Asked::Reverse(_) => "api.example.com".parse().map(Known::Pointer).into_iter().collect(),
        Asked::Invalid(_) => vec![Known::Nothing],
    }
}

fn check(query: &[u8], reply: &[u8]) {
    assert!(reply.len() <= 512 && reply[..2] == query[..2] && reply[2] & 0x80 != 0);
    assert!(matches!(read(reply), Received::Refused(_, None)));
}

fuzz_target!(|query: &[u8]| match read(query) {
    Received::Question(question) => {
        for known in known(question.asked()) {
            let reply = question.reply(&known, true).expect("every question is answered");
            check(query, &reply);
        }
    }
    Received::Refused(_, Some(reply)) => check(query, &reply),
    Received::Refused(_, None) | Received::Nothing => {}
});
