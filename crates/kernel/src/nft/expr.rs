//! A rule as the kernel's expressions: lowered from [`NftRule`], written as attributes, read back from them.

use super::uapi::*;
use crate::netlink::{Attribute, Writer, attributes};
use libc::{
    NF_ACCEPT, NF_DROP, NFT_CMP_EQ, NFT_CMP_LT, NFT_CMP_NEQ, NFT_CT_DIRECTION, NFT_CT_STATE, NFT_META_IIF,
    NFT_META_L4PROTO, NFT_META_MARK, NFT_META_NFPROTO, NFT_META_OIF, NFT_META_PROTOCOL,
    NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER, NFT_REG_1, NFT_REG_2, NFT_REG_VERDICT,
    NFT_REG32_01, NFT_REG32_02, NFT_REG32_05, NFT_REJECT_ICMPX_ADMIN_PROHIBITED, NFT_REJECT_ICMPX_UNREACH,
    NFT_REJECT_TCP_RST, NFT_RETURN,
};
use std::net::IpAddr;
use terok_policy::rule::Cidr;
use terok_policy::ruleset::{End, Family, Match, NftRule, Statement};

/// `lo` has this index in every network namespace.
const LO: u32 = 1;
/// `enum ip_conntrack_dir`
const ORIGINAL: u8 = 0;
const REPLY: u8 = 1;

/// Position and length of a field in a header.
type Field = (u32, u32);

/// An expression of nf_tables. What a rule of ours never has reads back as [`Expr::Other`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expr {
    Meta { key: u32, dreg: u32 },
    SetMeta { key: u32, sreg: u32 },
    Fib { result: u32, flags: u32, dreg: u32 },
    Ct { key: u32, dreg: u32 },
    Payload { base: u32, at: Field, dreg: u32 },
    Cmp { op: u32, sreg: u32, data: Vec<u8> },
    Bitwise { sreg: u32, dreg: u32, mask: Vec<u8>, xor: Vec<u8> },
    Lookup { set: String, sreg: u32 },
    Value { dreg: u32, data: Vec<u8> },
    Verdict(i32),
    Counter,
    Limit { rate: u64, unit: u64, burst: u32 },
    Log { group: u16, prefix: String },
    Redirect { sreg: u32 },
    Masquerade { min: u32, max: u32 },
    Reject { kind: u32, code: Option<u8> },
    Other(String),
}

/// The expressions of `rule`, in the registers that the nft tool uses, so that it can print them.
pub(super) fn lower(rule: &NftRule) -> Vec<Expr> {
    let mut exprs = Vec::new();
    for m in &rule.matches {
        lower_match(m, &mut exprs);
    }
    for s in &rule.statements {
        lower_statement(s, &mut exprs);
    }
    exprs
}

fn lower_match(m: &Match, out: &mut Vec<Expr>) {
    match *m {
        Match::OutLo => out.extend([meta(NFT_META_OIF), equal(&LO.to_ne_bytes())]),
        Match::OutCard => out.extend([meta(NFT_META_OIF), compare(NFT_CMP_NEQ, &LO.to_ne_bytes())]),
        Match::InLo => out.extend([meta(NFT_META_IIF), equal(&LO.to_ne_bytes())]),
        Match::ToLocal => {
            out.extend([address_type(NFTA_FIB_F_DADDR), equal(&u32::from(libc::RTN_LOCAL).to_ne_bytes())]);
        }
        Match::FromElsewhere => out.extend([
            address_type(NFTA_FIB_F_SADDR),
            compare(NFT_CMP_NEQ, &u32::from(libc::RTN_LOCAL).to_ne_bytes()),
        ]),
        Match::Mark(mark) => out.extend([meta(NFT_META_MARK), equal(&mark.to_ne_bytes())]),
        Match::EtherType(number) => out.extend([meta(NFT_META_PROTOCOL), equal(&number.to_be_bytes())]),
        Match::L4Proto(proto) => out.extend([meta(NFT_META_L4PROTO), equal(&[proto])]),
        Match::SPort(number) => {
            out.extend([transport(port(End::Source)), equal(&number.to_be_bytes())]);
        }
        Match::DPort(number) => {
            out.extend([transport(port(End::Destination)), equal(&number.to_be_bytes())]);
        }
        Match::DPortBelow(number) => {
            out.extend([transport(port(End::Destination)), compare(NFT_CMP_LT, &number.to_be_bytes())]);
        }
        Match::SAddr(cidr) => in_block(End::Source, cidr, out),
        Match::DAddr(cidr) => in_block(End::Destination, cidr, out),
        Match::InSet { end, set, family, ports } => {
            out.extend(of_family(family));
            let (proto, number) = match family {
                Family::V4 => (NFT_REG32_01, NFT_REG32_02),
                Family::V6 => (NFT_REG_2, NFT_REG32_05),
            };
            out.push(payload(NFT_PAYLOAD_NETWORK_HEADER, address(end, family), NFT_REG_1));
            if ports {
                out.push(Expr::Meta { key: NFT_META_L4PROTO as u32, dreg: proto as u32 });
                out.push(payload(NFT_PAYLOAD_TRANSPORT_HEADER, port(end), number));
            }
            out.push(Expr::Lookup { set: set.to_owned(), sreg: NFT_REG_1 as u32 });
        }
        Match::CtState(bits) => out.extend([
            Expr::Ct { key: NFT_CT_STATE as u32, dreg: NFT_REG_1 as u32 },
            masked(&bits.to_ne_bytes()),
            compare(NFT_CMP_NEQ, &[0; 4]),
        ]),
        Match::CtOriginal => out.extend(direction(ORIGINAL)),
        Match::CtReply => out.extend(direction(REPLY)),
        Match::Icmp6Type(kind) => {
            out.extend(of_family(Family::V6));
            out.extend([
                meta(NFT_META_L4PROTO),
                equal(&[libc::IPPROTO_ICMPV6 as u8]),
                transport((0, 1)),
                equal(&[kind]),
            ]);
        }
    }
}

fn lower_statement(s: &Statement, out: &mut Vec<Expr>) {
    let expr = match *s {
        Statement::Counter => Expr::Counter,
        Statement::Limit { rate, burst } => Expr::Limit { rate, unit: 1, burst },
        Statement::Log { group, prefix } => Expr::Log { group, prefix: prefix.to_owned() },
        Statement::Redirect(port) => {
            let data = port.to_be_bytes().to_vec();
            out.push(Expr::Value { dreg: NFT_REG_1 as u32, data });
            Expr::Redirect { sreg: NFT_REG_1 as u32 }
        }
        Statement::Masquerade(first, last) => {
            let (min, max) = (NFT_REG_1 as u32, NFT_REG_2 as u32);
            out.push(Expr::Value { dreg: min, data: first.to_be_bytes().to_vec() });
            out.push(Expr::Value { dreg: max, data: last.to_be_bytes().to_vec() });
            Expr::Masquerade { min, max }
        }
        Statement::SetMark(mark) => {
            let sreg = NFT_REG_1 as u32;
            out.push(Expr::Value { dreg: sreg, data: mark.to_ne_bytes().to_vec() });
            Expr::SetMeta { key: NFT_META_MARK as u32, sreg }
        }
        Statement::Accept => Expr::Verdict(NF_ACCEPT),
        Statement::Drop => Expr::Verdict(NF_DROP),
        Statement::Return => Expr::Verdict(NFT_RETURN),
        Statement::RejectTcpReset => Expr::Reject { kind: NFT_REJECT_TCP_RST as u32, code: None },
        Statement::RejectAdminProhibited => Expr::Reject {
            kind: NFT_REJECT_ICMPX_UNREACH as u32,
            code: Some(NFT_REJECT_ICMPX_ADMIN_PROHIBITED as u8),
        },
    };
    out.push(expr);
}

/// A table of family `inet` sees both families: each address is compared in packets of its own only.
fn of_family(family: Family) -> [Expr; 2] {
    let number = match family {
        Family::V4 => libc::NFPROTO_IPV4,
        Family::V6 => libc::NFPROTO_IPV6,
    };
    [meta(NFT_META_NFPROTO), equal(&[number as u8])]
}

fn in_block(end: End, block: Cidr, out: &mut Vec<Expr>) {
    let (family, octets, mask) = match block.addr {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(block.prefix.into())).unwrap_or(0);
            (Family::V4, ip.octets().to_vec(), mask.to_be_bytes().to_vec())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128u32.saturating_sub(block.prefix.into())).unwrap_or(0);
            (Family::V6, ip.octets().to_vec(), mask.to_be_bytes().to_vec())
        }
    };
    out.extend(of_family(family));
    if mask.iter().all(|b| *b == 0) {
        return;
    }
    out.push(payload(NFT_PAYLOAD_NETWORK_HEADER, address(end, family), NFT_REG_1));
    if mask.iter().any(|b| *b != 0xff) {
        out.push(masked(&mask));
    }
    out.push(equal(&octets));
}

/// Of the address that `end` means.
fn address_type(end: u32) -> Expr {
    Expr::Fib { result: NFT_FIB_RESULT_ADDRTYPE, flags: end, dreg: NFT_REG_1 as u32 }
}

fn direction(wanted: u8) -> [Expr; 2] {
    [Expr::Ct { key: NFT_CT_DIRECTION as u32, dreg: NFT_REG_1 as u32 }, equal(&[wanted])]
}

/// An address in the IP header.
fn address(end: End, family: Family) -> Field {
    match (end, family) {
        (End::Source, Family::V4) => (12, 4),
        (End::Destination, Family::V4) => (16, 4),
        (End::Source, Family::V6) => (8, 16),
        (End::Destination, Family::V6) => (24, 16),
    }
}

/// A port in the TCP and UDP header.
fn port(end: End) -> Field {
    match end {
        End::Source => (0, 2),
        End::Destination => (2, 2),
    }
}

fn meta(key: i32) -> Expr {
    Expr::Meta { key: key as u32, dreg: NFT_REG_1 as u32 }
}

fn transport(at: Field) -> Expr {
    payload(NFT_PAYLOAD_TRANSPORT_HEADER, at, NFT_REG_1)
}

fn payload(base: i32, at: Field, dreg: i32) -> Expr {
    Expr::Payload { base: base as u32, at, dreg: dreg as u32 }
}

fn equal(data: &[u8]) -> Expr {
    compare(NFT_CMP_EQ, data)
}

fn compare(op: i32, data: &[u8]) -> Expr {
    Expr::Cmp { op: op as u32, sreg: NFT_REG_1 as u32, data: data.to_vec() }
}

fn masked(mask: &[u8]) -> Expr {
    Expr::Bitwise {
        sreg: NFT_REG_1 as u32,
        dreg: NFT_REG_1 as u32,
        mask: mask.to_vec(),
        xor: vec![0; mask.len()],
    }
}

/// Writes `exprs` as the content of `NFTA_RULE_EXPRESSIONS`.
pub(super) fn write(exprs: &[Expr], w: &mut Writer) {
    for expr in exprs {
        w.nest(NFTA_LIST_ELEM, |w| {
            w.string(NFTA_EXPR_NAME, expr.name());
            w.nest(NFTA_EXPR_DATA, |w| expr.write(w));
        });
    }
}

/// Reads the content of `NFTA_RULE_EXPRESSIONS`.
pub(super) fn read(list: &[u8]) -> Vec<Expr> {
    attributes(list).map(|a| Expr::read(a.value)).collect()
}

impl Expr {
    fn name(&self) -> &str {
        match self {
            Self::Meta { .. } | Self::SetMeta { .. } => "meta",
            Self::Fib { .. } => "fib",
            Self::Ct { .. } => "ct",
            Self::Payload { .. } => "payload",
            Self::Cmp { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Lookup { .. } => "lookup",
            Self::Value { .. } | Self::Verdict(_) => "immediate",
            Self::Counter => "counter",
            Self::Limit { .. } => "limit",
            Self::Log { .. } => "log",
            Self::Redirect { .. } => "redir",
            Self::Masquerade { .. } => "masq",
            Self::Reject { .. } => "reject",
            Self::Other(name) => name,
        }
    }

    fn write(&self, w: &mut Writer) {
        let value = |w: &mut Writer, kind, data: &[u8]| w.nest(kind, |w| w.attribute(NFTA_DATA_VALUE, data));
        match self {
            Self::Meta { key, dreg } => {
                w.be32(NFTA_META_KEY, *key);
                w.be32(NFTA_META_DREG, *dreg);
            }
            Self::SetMeta { key, sreg } => {
                w.be32(NFTA_META_KEY, *key);
                w.be32(NFTA_META_SREG, *sreg);
            }
            Self::Fib { result, flags, dreg } => {
                w.be32(NFTA_FIB_FLAGS, *flags);
                w.be32(NFTA_FIB_RESULT, *result);
                w.be32(NFTA_FIB_DREG, *dreg);
            }
            Self::Ct { key, dreg } => {
                w.be32(NFTA_CT_KEY, *key);
                w.be32(NFTA_CT_DREG, *dreg);
            }
            Self::Payload { base, at, dreg } => {
                w.be32(NFTA_PAYLOAD_DREG, *dreg);
                w.be32(NFTA_PAYLOAD_BASE, *base);
                w.be32(NFTA_PAYLOAD_OFFSET, at.0);
                w.be32(NFTA_PAYLOAD_LEN, at.1);
            }
            Self::Cmp { op, sreg, data } => {
                w.be32(NFTA_CMP_SREG, *sreg);
                w.be32(NFTA_CMP_OP, *op);
                value(w, NFTA_CMP_DATA, data);
            }
            Self::Bitwise { sreg, dreg, mask, xor } => {
                w.be32(NFTA_BITWISE_SREG, *sreg);
                w.be32(NFTA_BITWISE_DREG, *dreg);
                w.be32(NFTA_BITWISE_LEN, mask.len() as u32);
                value(w, NFTA_BITWISE_MASK, mask);
                value(w, NFTA_BITWISE_XOR, xor);
            }
            Self::Lookup { set, sreg } => {
                w.string(NFTA_LOOKUP_SET, set);
                w.be32(NFTA_LOOKUP_SREG, *sreg);
            }
            Self::Value { dreg, data } => {
                w.be32(NFTA_IMMEDIATE_DREG, *dreg);
                value(w, NFTA_IMMEDIATE_DATA, data);
            }
            Self::Verdict(code) => {
                w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT as u32);
                w.nest(NFTA_IMMEDIATE_DATA, |w| {
                    w.nest(NFTA_DATA_VERDICT, |w| w.be32(NFTA_VERDICT_CODE, *code as u32));
                });
            }
            Self::Counter | Self::Other(_) => {}
            Self::Limit { rate, unit, burst } => {
                w.be64(NFTA_LIMIT_RATE, *rate);
                w.be64(NFTA_LIMIT_UNIT, *unit);
                w.be32(NFTA_LIMIT_BURST, *burst);
            }
            Self::Log { group, prefix } => {
                w.attribute(NFTA_LOG_GROUP, &group.to_be_bytes());
                w.string(NFTA_LOG_PREFIX, prefix);
            }
            Self::Redirect { sreg } => {
                w.be32(NFTA_REDIR_REG_PROTO_MIN, *sreg);
                w.be32(NFTA_REDIR_FLAGS, NF_NAT_RANGE_PROTO_SPECIFIED);
            }
            Self::Masquerade { min, max } => {
                w.be32(NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_SPECIFIED);
                w.be32(NFTA_MASQ_REG_PROTO_MIN, *min);
                w.be32(NFTA_MASQ_REG_PROTO_MAX, *max);
            }
            Self::Reject { kind, code } => {
                w.be32(NFTA_REJECT_TYPE, *kind);
                if let Some(code) = code {
                    w.attribute(NFTA_REJECT_ICMP_CODE, &[*code]);
                }
            }
        }
    }

    /// Reads one expression, strictly: an attribute that ours do not have, or not with this value, makes it [`Expr::Other`].
    fn read(list: &[u8]) -> Self {
        let name = attributes(list).find(|a| a.kind == NFTA_EXPR_NAME).and_then(|a| a.string());
        let data = attributes(list).find(|a| a.kind == NFTA_EXPR_DATA);
        let (name, data) = (name.unwrap_or("?"), data.map_or(&[][..], |a| a.value));
        Self::read_data(name, data).unwrap_or_else(|| Self::Other(format!("{name} {data:02x?}")))
    }

    fn read_data(name: &str, data: &[u8]) -> Option<Self> {
        let f = Fields(data);
        let u32_of = |kind| f.get(kind)?.be32();
        let bytes_of = |kind| f.data(kind, NFTA_DATA_VALUE).map(<[u8]>::to_vec);
        let (expr, known): (_, &[u16]) = match name {
            "meta" if f.get(NFTA_META_SREG).is_some() => (
                Self::SetMeta { key: u32_of(NFTA_META_KEY)?, sreg: u32_of(NFTA_META_SREG)? },
                &[NFTA_META_KEY, NFTA_META_SREG],
            ),
            "fib" => (
                Self::Fib {
                    result: u32_of(NFTA_FIB_RESULT)?,
                    flags: u32_of(NFTA_FIB_FLAGS)?,
                    dreg: u32_of(NFTA_FIB_DREG)?,
                },
                &[NFTA_FIB_RESULT, NFTA_FIB_FLAGS, NFTA_FIB_DREG],
            ),
            "meta" => (
                Self::Meta { key: u32_of(NFTA_META_KEY)?, dreg: u32_of(NFTA_META_DREG)? },
                &[NFTA_META_KEY, NFTA_META_DREG],
            ),
            "ct" => (
                Self::Ct { key: u32_of(NFTA_CT_KEY)?, dreg: u32_of(NFTA_CT_DREG)? },
                &[NFTA_CT_KEY, NFTA_CT_DREG],
            ),
            "payload" => (
                Self::Payload {
                    base: u32_of(NFTA_PAYLOAD_BASE)?,
                    at: (u32_of(NFTA_PAYLOAD_OFFSET)?, u32_of(NFTA_PAYLOAD_LEN)?),
                    dreg: u32_of(NFTA_PAYLOAD_DREG)?,
                },
                &[NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_DREG],
            ),
            "cmp" => (
                Self::Cmp {
                    op: u32_of(NFTA_CMP_OP)?,
                    sreg: u32_of(NFTA_CMP_SREG)?,
                    data: bytes_of(NFTA_CMP_DATA)?,
                },
                &[NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_CMP_DATA],
            ),
            "bitwise" => {
                let (mask, xor) = (bytes_of(NFTA_BITWISE_MASK)?, bytes_of(NFTA_BITWISE_XOR)?);
                let length = u32_of(NFTA_BITWISE_LEN)? as usize;
                // 0 is NFT_BITWISE_MASK_XOR; kernels before 5.6 have no other and do not say.
                let plain = f.get(NFTA_BITWISE_OP).is_none_or(|op| op.be32() == Some(0));
                if !plain || length != mask.len() || length != xor.len() {
                    return None;
                }
                (
                    Self::Bitwise {
                        sreg: u32_of(NFTA_BITWISE_SREG)?,
                        dreg: u32_of(NFTA_BITWISE_DREG)?,
                        mask,
                        xor,
                    },
                    &[
                        NFTA_BITWISE_SREG,
                        NFTA_BITWISE_DREG,
                        NFTA_BITWISE_LEN,
                        NFTA_BITWISE_MASK,
                        NFTA_BITWISE_XOR,
                        NFTA_BITWISE_OP,
                    ],
                )
            }
            "lookup" => {
                // NFT_LOOKUP_F_INV would turn the rule round.
                if f.get(NFTA_LOOKUP_FLAGS).is_some_and(|flags| flags.be32() != Some(0)) {
                    return None;
                }
                let set = f.get(NFTA_LOOKUP_SET)?.string()?.to_owned();
                (
                    Self::Lookup { set, sreg: u32_of(NFTA_LOOKUP_SREG)? },
                    &[NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_LOOKUP_FLAGS],
                )
            }
            "immediate" => {
                let dreg = u32_of(NFTA_IMMEDIATE_DREG)?;
                let expr = if dreg == NFT_REG_VERDICT as u32 {
                    let verdict = Fields(f.data(NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT)?);
                    // A jump has a chain beside its code.
                    verdict.only(&[NFTA_VERDICT_CODE])?;
                    Self::Verdict(verdict.get(NFTA_VERDICT_CODE)?.be32()? as i32)
                } else {
                    Self::Value { dreg, data: bytes_of(NFTA_IMMEDIATE_DATA)? }
                };
                (expr, &[NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA])
            }
            "counter" => (Self::Counter, &[NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS, NFTA_COUNTER_PAD]),
            "limit" => {
                // Packets, not octets; not NFT_LIMIT_F_INV.
                for kind in [NFTA_LIMIT_TYPE, NFTA_LIMIT_FLAGS] {
                    if f.get(kind).is_some_and(|a| a.be32() != Some(0)) {
                        return None;
                    }
                }
                (
                    Self::Limit {
                        rate: f.get(NFTA_LIMIT_RATE)?.be64()?,
                        unit: f.get(NFTA_LIMIT_UNIT)?.be64()?,
                        burst: u32_of(NFTA_LIMIT_BURST)?,
                    },
                    &[
                        NFTA_LIMIT_RATE,
                        NFTA_LIMIT_UNIT,
                        NFTA_LIMIT_BURST,
                        NFTA_LIMIT_TYPE,
                        NFTA_LIMIT_FLAGS,
                        NFTA_LIMIT_PAD,
                    ],
                )
            }
            "log" => {
                let group = f.get(NFTA_LOG_GROUP)?.value.try_into().ok()?;
                let prefix = f.get(NFTA_LOG_PREFIX)?.string()?.to_owned();
                (Self::Log { group: u16::from_be_bytes(group), prefix }, &[NFTA_LOG_GROUP, NFTA_LOG_PREFIX])
            }
            "redir" => {
                let sreg = u32_of(NFTA_REDIR_REG_PROTO_MIN)?;
                let one = f.get(NFTA_REDIR_REG_PROTO_MAX).is_none_or(|a| a.be32() == Some(sreg));
                if !one || u32_of(NFTA_REDIR_FLAGS)? != NF_NAT_RANGE_PROTO_SPECIFIED {
                    return None;
                }
                (
                    Self::Redirect { sreg },
                    &[NFTA_REDIR_REG_PROTO_MIN, NFTA_REDIR_REG_PROTO_MAX, NFTA_REDIR_FLAGS],
                )
            }
            "masq" => {
                if u32_of(NFTA_MASQ_FLAGS)? != NF_NAT_RANGE_PROTO_SPECIFIED {
                    return None;
                }
                (
                    Self::Masquerade {
                        min: u32_of(NFTA_MASQ_REG_PROTO_MIN)?,
                        max: u32_of(NFTA_MASQ_REG_PROTO_MAX)?,
                    },
                    &[NFTA_MASQ_FLAGS, NFTA_MASQ_REG_PROTO_MIN, NFTA_MASQ_REG_PROTO_MAX],
                )
            }
            "reject" => {
                let code = match f.get(NFTA_REJECT_ICMP_CODE).map(|a| a.value) {
                    None => None,
                    Some(&[code]) => Some(code),
                    Some(_) => return None,
                };
                (
                    Self::Reject { kind: u32_of(NFTA_REJECT_TYPE)?, code },
                    &[NFTA_REJECT_TYPE, NFTA_REJECT_ICMP_CODE],
                )
            }
            _ => return None,
        };
        f.only(known)?;
        Some(expr)
    }
}

/// The attributes of one expression.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn get(&self, kind: u16) -> Option<Attribute<'a>> {
        attributes(self.0).find(|a| a.kind == kind)
    }

    /// The `part` of a `struct nft_data` attribute.
    fn data(&self, kind: u16, part: u16) -> Option<&'a [u8]> {
        Fields(self.get(kind)?.value).get(part).map(|a| a.value)
    }

    fn only(&self, known: &[u16]) -> Option<()> {
        attributes(self.0).all(|a| known.contains(&a.kind)).then_some(())
    }
}
