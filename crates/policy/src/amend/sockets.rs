//! L9: IP is not the only way out. Sockets of four families only, no io_uring, which would make them behind the filter's back.

use super::seccomp::{Action, Arg, Args, EPERM, Filter, Form, INT};

const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const AF_NETLINK: u32 = 16;
const AF_PACKET: u32 = 17;
const STREAM: u32 = 1;
const DGRAM: u32 = 2;
const RAW: u32 = 3;
const SEQPACKET: u32 = 5;
const DCCP: u32 = 6;
/// `socket(AF_INET, SOCK_PACKET, …)` makes an AF_PACKET socket (net/socket.c, __sock_create).
const PACKET: u32 = 10;
/// SOCK_CLOEXEC and SOCK_NONBLOCK are or-ed into the type (include/linux/net.h, SOCK_TYPE_MASK).
const TYPE_MASK: u64 = 0xf;

const TCP: u32 = 6;
const UDP: u32 = 17;
const MPTCP: u32 = 262;
const L2TP: u32 = 115;
const SCTP: u32 = 132;
const UDP_LITE: u32 = 136;
const SMC: u32 = 256;
/// One more than the last netlink protocol, NETLINK_SMC (include/uapi/linux/netlink.h).
const NETLINK_PROTOCOLS: u32 = 23;

const IO_URING: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];
/// The i386 multiplexer: its arguments are behind a pointer, where no filter can look.
const MULTIPLEXER: &str = "socketcall";

/// Limits `filter` to the families, types and protocols that the firewall judges. `raw`: CAP_NET_RAW was granted.
pub(super) fn limit(filter: &mut Filter, raw: bool) {
    filter.refuse_first(MULTIPLEXER);
    filter.limit("socket", &forms(filter, raw), &refusals(raw));
    let pair = Form { args: vec![Arg::int(0, AF_UNIX)], samples: vec![args(AF_UNIX, STREAM, 0)] };
    filter.limit("socketpair", &[pair], &[vec![Arg::int(0, 0)], vec![Arg::greater(0, AF_UNIX.into())]]);
    filter.refuse(&IO_URING, EPERM);
}

/// A call that `filter` lets through and L9 does not.
pub(super) fn open_door(filter: &Filter, raw: bool) -> Option<String> {
    let listed = |family: &u32| {
        [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK].contains(family) || (raw && *family == AF_PACKET)
    };
    let families = (0..64).filter(|family| !listed(family));
    let mut sockets: Vec<Args> = families
        .flat_map(|family| [STREAM, DGRAM, RAW, SEQPACKET].map(|kind| args(family, kind, 0)))
        .collect();
    for family in [AF_INET, AF_INET6] {
        let kinds: &[u32] = if raw { &[SEQPACKET, DCCP] } else { &[RAW, SEQPACKET, DCCP, PACKET] };
        sockets.extend(kinds.iter().map(|&kind| args(family, kind, 0)));
        sockets.extend([SCTP, SMC].map(|protocol| args(family, STREAM, protocol)));
        sockets.push(args(family, DGRAM, UDP_LITE));
    }
    // The kernel drops the upper half of an int argument; a filter that compares 64 bits must not.
    let high: Vec<Args> = sockets.iter().map(|call| call.map(|arg| arg | 1 << 32)).collect();
    let (socket, socketpair) = (filter.about("socket"), filter.about("socketpair"));
    if let Some(found) = sockets.iter().chain(&high).find(|call| socket.permits(call)) {
        let [family, kind, protocol, ..] = found.map(|arg| arg & 0xffff_ffff);
        return Some(format!("socket({family}, {kind}, {protocol})"));
    }
    if let Some(family) = (2..64).find(|&family| socketpair.permits(&args(family, STREAM, 0))) {
        return Some(format!("socketpair({family})"));
    }
    if !filter.refuses_expressly(MULTIPLEXER) {
        return Some(MULTIPLEXER.to_owned());
    }
    IO_URING
        .iter()
        .find(|syscall| filter.about(syscall).permits(&[0; 6]))
        .map(|syscall| (*syscall).to_owned())
}

/// The sockets that `filter` lets a program make, by family and type, with the family's own protocol.
pub(super) fn passing(filter: &Filter) -> Vec<(u32, u32)> {
    let socket = filter.about("socket");
    let kinds = |family| [STREAM, DGRAM, RAW, SEQPACKET, DCCP, PACKET].map(|kind| (family, kind));
    let passes = |(family, kind): &(u32, u32)| socket.permits(&args(*family, *kind, 0));
    (0..64).flat_map(kinds).filter(passes).collect()
}

/// The forms of `socket` that may pass. As few as can be: libseccomp's time to compile a filter grows faster than its
/// rules, and crun compiles it at every start.
fn forms(filter: &Filter, raw: bool) -> Vec<Form> {
    let samples = |kind, protocol| vec![args(AF_INET, kind, protocol), args(AF_INET6, kind, protocol)];
    // The kernel makes nothing else in this family (net/unix/af_unix.c, unix_create).
    let unix = [STREAM, DGRAM, SEQPACKET].map(|kind| args(AF_UNIX, kind, 0)).to_vec();
    let mut forms = vec![Form { args: vec![Arg::int(0, AF_UNIX)], samples: unix }];
    for (kind, protocols) in [(STREAM, &[0, TCP, MPTCP][..]), (DGRAM, &[0, UDP][..])] {
        for &protocol in protocols {
            let args = vec![internet(), type_is(kind), Arg::int(2, protocol)];
            forms.push(Form { args, samples: samples(kind, protocol) });
        }
    }
    for (family, ping) in [(AF_INET, 1), (AF_INET6, 58)] {
        let form = vec![Arg::int(0, family), type_is(DGRAM), Arg::int(2, ping)];
        forms.push(Form { args: form, samples: vec![args(family, DGRAM, ping)] });
    }
    if raw {
        forms.push(Form { args: vec![internet(), type_is(RAW)], samples: samples(RAW, 255) });
        forms.push(Form { args: vec![Arg::int(0, AF_PACKET)], samples: vec![args(AF_PACKET, RAW, 0x300)] });
    }
    forms.extend(netlink_forms(filter));
    forms
}

/// Netlink serves the container's own namespace; the engine's exceptions (Podman's: no NETLINK_AUDIT) are kept.
fn netlink_forms(filter: &Filter) -> Vec<Form> {
    let sample = |protocol| args(AF_NETLINK, RAW, protocol);
    let socket = filter.about("socket");
    let decided: Vec<Action> = (0..NETLINK_PROTOCOLS).map(|p| socket.strictest(&sample(p))).collect();
    let family = Arg::int(0, AF_NETLINK);
    let form = |args, protocol| Form { args, samples: vec![sample(protocol)] };
    // Protocol 0, NETLINK_ROUTE, stands for the rest: `getaddrinfo` needs it, so every engine lets it through.
    let usual = &decided[0];
    let exceptions: Vec<u32> = (0..NETLINK_PROTOCOLS).filter(|&p| decided[p as usize] != *usual).collect();
    match exceptions.as_slice() {
        [] => vec![form(vec![family], 0)],
        [only] => vec![
            form(vec![family, Arg::other_than(2, u64::from(*only))], 0),
            form(vec![family, Arg::equal(2, u64::from(*only))], *only),
        ],
        _ => (0..NETLINK_PROTOCOLS).map(|p| form(vec![family, Arg::int(2, p)], p)).collect(),
    }
}

/// Forms to refuse by name, with EPERM: all other families, and what is neither TCP nor UDP in the Internet's.
fn refusals(raw: bool) -> Vec<Vec<Arg>> {
    let last = if raw { AF_PACKET } else { AF_NETLINK };
    // 0, 3, 4 to 7, 8 and 9, 11, 12 to 15, and all above.
    let blocks = [(0, INT), (3, INT), (4, INT - 3), (8, INT - 1), (11, INT), (12, INT - 3)];
    let mut refusals: Vec<Vec<Arg>> =
        blocks.map(|(family, mask)| vec![Arg::masked(0, mask, family)]).to_vec();
    refusals.push(vec![Arg::greater(0, last.into())]);
    // Types 4 to 7, SEQPACKET and DCCP among them, and 8 to 15, PACKET among them.
    refusals.push(vec![internet(), Arg::masked(1, 0xc, 4)]);
    if !raw {
        refusals.push(vec![internet(), type_is(RAW)]);
        refusals.push(vec![internet(), Arg::masked(1, 8, 8)]);
    }
    for (kind, protocol) in [(STREAM, SCTP), (STREAM, SMC), (DGRAM, UDP_LITE), (DGRAM, L2TP)] {
        refusals.push(vec![internet(), type_is(kind), Arg::int(2, protocol)]);
    }
    refusals
}

/// AF_INET and AF_INET6, which differ in one bit.
fn internet() -> Arg {
    Arg::masked(0, INT - u64::from(AF_INET ^ AF_INET6), AF_INET.into())
}

fn type_is(kind: u32) -> Arg {
    Arg::masked(1, TYPE_MASK, kind.into())
}

fn args(family: u32, kind: u32, protocol: u32) -> Args {
    [family.into(), kind.into(), protocol.into(), 0, 0, 0]
}
