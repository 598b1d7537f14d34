//! A datagram on the NFLOG socket: reading it never panics and never claims more packets than it has room for.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    let packets = terok_kernel::nflog::parse(datagram).count();
    assert!(packets <= datagram.len() / 16);
});
