//! The contract between the person who starts a container and everything terok does to it:
//! annotations, egress rules, profiles, verdicts, the plan, the nftables table, the audit event.
//! Pure: no I/O, no clock, no environment.
#![forbid(unsafe_code)]

pub mod amend;
pub mod annotation;
pub mod answer;
pub mod audit;
pub mod capabilities;
pub mod control;
pub mod floor;
pub mod grants;
pub mod judge;
pub mod layout;
pub mod live;
pub mod name;
pub mod phantom;
pub mod plan;
pub mod policy;
pub mod profile;
pub mod provider;
pub mod provision;
pub mod rule;
pub mod ruleset;
pub mod settings;
pub mod spelling;
pub mod tighten;
pub mod virt;

pub use annotation::AnnotationError;
pub use answer::{Answer, answer};
pub use judge::{Query, Verdict, judge};
pub use name::Name;
pub use plan::{HostFacts, Plan};
pub use policy::{Labels, Policy, Shield};
pub use rule::Rule;
pub use tighten::within;
