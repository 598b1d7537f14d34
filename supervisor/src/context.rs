//! What the worker's tasks share. One thread: `Rc<Context>`, no lock.

use crate::audit::{Audit, Facts as _, event};
use crate::flows::Flows;
use crate::hold::{Answer, Hold};
use crate::names::NameTable;
use crate::parent_link::{News, ParentLink};
use crate::vault::{Granted, Standings, Vault};
use anyhow::Context as _;
use std::cell::{Cell, Ref, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};
use terok_kernel::statedir::Dir;
use terok_policy::audit::Kind;
use terok_policy::layout;
use terok_policy::live::Live;
use terok_policy::plan::{Card, SupervisorConfig};
use terok_policy::{Query, Shield, Verdict};

/// Everything the worker's tasks share.
pub(crate) struct Context {
    /// What the hook decided.
    pub(crate) config: SupervisorConfig,
    /// The audit log.
    pub(crate) audit: Audit,
    /// Names with a virtual address.
    pub(crate) names: NameTable,
    /// Open connections.
    pub(crate) flows: Flows,
    /// Connections that wait for a verdict.
    pub(crate) hold: Hold,
    /// The container's runtime folder.
    pub(crate) run_dir: Dir,
    /// The container's state folder.
    pub(crate) state_dir: Dir,
    /// What only the parent may do: [`ParentLink::grant`], [`ParentLink::apply`].
    pub(crate) parent: Rc<ParentLink>,
    /// Granted credentials and signatures.
    pub(crate) vault: Vault,
    /// How the grants stand.
    pub(crate) standings: Standings,
    live: RefCell<Live>,
    cards: RefCell<Vec<Card>>,
    tampered: RefCell<Option<String>>,
    cut_off: Cell<bool>,
}

impl Context {
    /// Shares what the worker opened.
    #[allow(clippy::too_many_arguments, reason = "each is opened by the worker in its own way")]
    pub(crate) fn new(
        config: SupervisorConfig,
        audit: Audit,
        names: NameTable,
        live: Live,
        run_dir: Dir,
        state_dir: Dir,
        parent: Rc<ParentLink>,
        vault: Vault,
    ) -> Rc<Self> {
        Rc::new(Context {
            cards: RefCell::new(config.facts.cards.clone()),
            config,
            audit,
            names,
            flows: Flows::default(),
            hold: Hold::default(),
            run_dir,
            state_dir,
            parent,
            vault,
            standings: Standings::default(),
            live: RefCell::new(live),
            tampered: RefCell::default(),
            cut_off: Cell::new(false),
        })
    }

    /// The verdict now: policy, live rules and the shield's state (which may have timed out a moment ago).
    pub(crate) fn judge(&self, query: &Query<'_>) -> Verdict {
        terok_policy::judge(&self.config.policy, &self.live.borrow(), self.shield(), query)
    }

    /// The shield's state now. A container that was cut off stays blocked whatever an operator says, until it is started again.
    pub(crate) fn shield(&self) -> Shield {
        if self.cut_off.get() {
            return Shield::Block;
        }
        self.live.borrow().shield(self.config.policy.shield, unix_seconds())
    }

    /// What the operator set. Not to be held across an await.
    pub(crate) fn live(&self) -> Ref<'_, Live> {
        self.live.borrow()
    }

    /// Puts an operator's change in force, once it is on disk.
    pub(crate) fn set_live(&self, live: Live) {
        self.live.replace(live);
    }

    /// Puts an operator's change on disk: it survives stop and start, a crash, and a reboot.
    pub(crate) fn keep(&self, live: &Live) -> io::Result<()> {
        let text = serde_json::to_vec(live)?;
        self.state_dir.write(layout::LIVE, &text).map_err(io::Error::other)
    }

    /// How many subscribers could give a verdict on a connection that waits.
    pub(crate) fn listeners(&self) -> usize {
        self.audit.subscribers()
    }

    /// Whether what was refused with `verdict` waits for an operator's word instead (`terok.shield.hold`): no rule speaks
    /// of it, and somebody listens. The host's own ports and names that no rule can have are not asked for.
    pub(crate) fn holds(&self, query: &Query<'_>, verdict: &Verdict) -> bool {
        let outside = match query {
            Query::Resolve(name) | Query::Name { name, .. } => !name.is_reserved(),
            Query::Literal { .. } => true,
            Query::Host { .. } => false,
        };
        self.config.policy.hold > 0 && outside && is_open_question(verdict) && self.listeners() > 0
    }

    /// Cuts every connection that would be refused now (E1); returns how many. Those that wait for a verdict and have
    /// their rule now, wait no more.
    pub(crate) fn recheck(&self) -> u64 {
        for (id, target) in self.hold.targets() {
            let verdict = self.judge(&target.query());
            if !is_open_question(&verdict) && self.hold.settle(id, Answer::Rules) {
                let action = if verdict.allows() { "allow" } else { "deny" };
                let line = event(Kind::Verdict, action, target.to_string());
                // What a change does must not depend on the disk.
                let _ = self.audit.record(line.verdict(&verdict).with("id", id));
            }
        }
        let revoked = |grant: usize| self.taken_back(Granted::Credential(grant)).is_some();
        let cut = self.flows.recheck(|query| self.judge(query)) + self.flows.cut_brokered(revoked);
        cut as u64
    }

    /// The container's cards now; not to be held across an await.
    pub(crate) fn cards(&self) -> Ref<'_, Vec<Card>> {
        self.cards.borrow()
    }

    /// How somebody else changed the container's tables, where that was found.
    pub(crate) fn tampered(&self) -> Option<String> {
        self.tampered.borrow().clone()
    }

    /// Takes note of what the parent says unasked.
    pub(crate) fn hear(&self, news: News) {
        match news {
            News::Cards(cards) => {
                self.audit.note(event(Kind::Lifecycle, "cards", names_of(&cards)));
                self.cards.replace(cards);
            }
            News::Tampered { what, cut } => {
                self.cut_off.set(cut);
                let cuts = if cut { self.recheck() } else { 0 };
                let line = event(Kind::Lifecycle, "tampered", "").with("difference", what.as_str());
                self.audit.note(line.with("cut-off", cut).with("cut", cuts));
                self.tampered.replace(Some(what));
            }
        }
    }

    /// Whether the user this supervisor runs as is who connected to the control socket.
    pub(crate) fn is_owner(&self, stream: impl AsFd) -> bool {
        let own =
            self.state_dir.as_fd().try_clone_to_owned().and_then(|folder| File::from(folder).metadata());
        let peer = terok_kernel::socket::peer(stream);
        matches!((own, peer), (Ok(own), Ok(peer)) if own.uid() == peer.uid)
    }
}

/// What an operator set on the container with this state folder ([`Context::keep`]).
pub(crate) fn kept_live(state: &Dir) -> anyhow::Result<Live> {
    let what = || format!("{}: repair or remove it", state.path().join(layout::LIVE).display());
    match state.read(layout::LIVE, Live::LIMIT)? {
        Some(text) => serde_json::from_slice(&text).with_context(what),
        None => Ok(Live::default()),
    }
}

/// Whether no rule decided: neither an allow nor a deny, nor the floor.
pub(crate) fn is_open_question(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Refuse { reason, rule: None } if reason.is_open_question())
}

fn names_of(cards: &[Card]) -> String {
    cards.iter().map(|card| card.name.as_str()).collect::<Vec<_>>().join(" ")
}

/// Seconds since the Unix epoch; 0 on a clock before it.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Milliseconds since the Unix epoch; 0 on a clock before it.
pub(crate) fn unix_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
