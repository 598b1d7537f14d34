//! A DNS question as a container may send it: answering never panics, a reply carries the question's id, fits into what
//! every client takes, and is itself no question that would be answered again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use terok_policy::Name;
use terok_supervisor::dns::answer::{Asked, Known, Names, answer};

/// Knows every name as the same address, so that as much of the reply as possible is built.
struct All {
    looked_up: u32,
}

impl Names for All {
    fn look_up(&mut self, asked: &Asked, _: &str) -> Known {
        self.looked_up += 1;
        match asked {
            Asked::Name(name) => {
                assert_eq!(name.as_str().parse::<Name>().as_ref(), Ok(name));
                Known::Virtual(300)
            }
            Asked::Reverse(index) => Known::Virtual(*index),
            Asked::Invalid(_) => Known::Nothing,
        }
    }

    fn reverse(&mut self, _: u32) -> Option<Name> {
        "api.example.com".parse().ok()
    }

    fn ipv6(&self) -> bool {
        true
    }

    fn refused(&mut self, _: &str) {}
}

fuzz_target!(|query: &[u8]| {
    let mut names = All { looked_up: 0 };
    if let Some(reply) = answer(query, &mut names) {
        assert!(reply.len() <= 512 && reply[..2] == query[..2] && reply[2] & 0x80 != 0);
        assert!(answer(&reply, &mut names).is_none());
    }
    assert!(names.looked_up <= 1);
});
