//! A client's bytes at the proxy's gate: how they arrive never changes what is forwarded, and what is forwarded of HTTP
//! would be forwarded again as it is: no second reading of it leads elsewhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use terok_supervisor::proxy::gate::Gate;
use terok_supervisor::proxy::http::{Requests, upgrade_answer};

fn through(input: &[u8], port: u16, step: usize) -> (bool, Vec<u8>) {
    let mut out = Vec::new();
    let Ok(name) = "api.example.com".parse() else { return (false, out) };
    let mut gate = Gate::new(name, port);
    for piece in input.chunks(step) {
        match gate.feed(piece, &mut out) {
            Ok(taken) if taken == piece.len() => {}
            Ok(_) => return (true, out),
            Err(_) => return (false, out),
        }
    }
    (true, out)
}

fuzz_target!(|input: &[u8]| {
    let Some((&first, input)) = input.split_first() else { return };
    for port in [80, 443, 8080] {
        let whole = through(input, port, usize::MAX);
        assert_eq!(through(input, port, usize::from(first % 16) + 1), whole);
    }
    let Ok(name) = "api.example.com".parse::<terok_policy::Name>() else { return };
    let (mut once, mut twice) = (Vec::new(), Vec::new());
    let _ = Requests::new(name.clone(), 80).feed(input, &mut once);
    let again = Requests::new(name, 80).feed(&once, &mut twice);
    assert_eq!((again, &twice), (Ok(once.len()), &once));
    let _ = upgrade_answer(input);
});
