//! The table `inet terok` as libnftnl, the reference library, reads it from the kernel: its own text of every rule, set and chain.
#![allow(unsafe_code, reason = "libnftnl is a C library")]

use nftnl::nftnl_sys as sys;
use std::ffi::c_char;
use terok_kernel::netlink::Writer;

/// Every chain, set and rule of the namespace, without handles and what runs out.
pub fn dump() -> Vec<String> {
    // SAFETY: each closure hands libnftnl an object of its own making and a whole netlink message; the object is freed once.
    unsafe {
        let mut all = ask(libc::NFT_MSG_GETCHAIN, |message| {
            let chain = sys::nftnl_chain_alloc();
            assert_eq!(sys::nftnl_chain_nlmsg_parse(message, chain), 0);
            sys::nftnl_chain_unset(chain, sys::NFTNL_CHAIN_HANDLE as u16);
            let text = print(|b, n| sys::nftnl_chain_snprintf(b, n, chain, 0, 0));
            sys::nftnl_chain_free(chain);
            text
        });
        all.extend(ask(libc::NFT_MSG_GETSET, |message| {
            let set = sys::nftnl_set_alloc();
            assert_eq!(sys::nftnl_set_nlmsg_parse(message, set), 0);
            let text = print(|b, n| sys::nftnl_set_snprintf(b, n, set, 0, 0));
            sys::nftnl_set_free(set);
            text
        }));
        all.extend(ask(libc::NFT_MSG_GETRULE, |message| {
            let rule = sys::nftnl_rule_alloc();
            assert_eq!(sys::nftnl_rule_nlmsg_parse(message, rule), 0);
            for volatile in [sys::NFTNL_RULE_HANDLE, sys::NFTNL_RULE_POSITION] {
                sys::nftnl_rule_unset(rule, volatile as u16);
            }
            let text = print(|b, n| sys::nftnl_rule_snprintf(b, n, rule, 0, 0));
            sys::nftnl_rule_free(rule);
            text
        }));
        all
    }
}

fn ask(kind: i32, mut each: impl FnMut(*const libc::nlmsghdr) -> String) -> Vec<String> {
    let mut request = Writer::default();
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    request.message(kind, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, 1, |w| {
        w.raw(&[libc::NFPROTO_INET as u8, 0, 0, 0]);
    });
    let socket = mnl::Socket::new(mnl::Bus::Netfilter).unwrap();
    socket.send(request.bytes()).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let mut found = Vec::new();
    loop {
        for message in socket.recv(&mut buffer[..]).unwrap() {
            let message = message.unwrap();
            let header = message.as_ptr().cast::<libc::nlmsghdr>();
            // SAFETY: mnl hands out whole messages, each of which starts with its header.
            match i32::from(unsafe { header.read_unaligned() }.nlmsg_type) {
                libc::NLMSG_DONE => return found,
                libc::NLMSG_ERROR => panic!("dump refused"),
                _ => found.push(each(header)),
            }
        }
    }
}

fn print(snprintf: impl Fn(*mut c_char, usize) -> i32) -> String {
    let mut text = vec![0u8; 1 << 16];
    let length = snprintf(text.as_mut_ptr().cast(), text.len());
    text.truncate(usize::try_from(length).unwrap());
    String::from_utf8(text).unwrap()
}
