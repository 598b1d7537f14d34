//! The table in the kernel: what was asked for, nothing else.

mod support;

use support::table::{PORTS, sealed};
use support::{has, in_netns, run};
use terok_kernel::nft;

#[test]
fn a_table_loads_and_reads_back_as_it_was_asked_for() {
    in_netns(|| {
        let nft = nft::open().unwrap();
        let wanted = sealed(PORTS);
        nft.load(&wanted).unwrap();
        nft.verify(&wanted).unwrap();
        println!("{}", run("nft", &["-nn", "list", "ruleset"], "").unwrap());
    });
}
