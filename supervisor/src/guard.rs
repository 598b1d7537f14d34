//! Watches over the container's tables and cards: loads what is wanted, notices what somebody else changed, and cuts a
//! container off whose firewall is not the one we loaded (L8). Lives in the parent: the container has no way to speak to it.

mod granting;
mod links;
mod steady;
#[cfg(test)]
mod tests;

use crate::context::kept_live;
use crate::inherit::{Inherited, ParentConfig, StoredConfig};
use crate::parent_link::News;
use anyhow::bail;
use granting::{Asked, Granting};
use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};
use steady::Steady;
use terok_kernel::conntrack;
use terok_kernel::netlink;
use terok_kernel::nft::{NftError, NftSocket};
use terok_kernel::rtnl::{self, Rtnl};
use terok_kernel::statedir::Dir;
use terok_policy::live::Live;
use terok_policy::plan::{Fd, HostFacts, Network, Now, Plan, SupervisorConfig, Wiring};
use terok_policy::policy::{Policy, Shield};
use terok_policy::ruleset::Set;
use terok_policy::{Name, layout};

/// A comparison that failed for another reason than a difference is tried again so soon, and this often: then whatever
/// hinders it counts as tampering, because a table that cannot be read cannot be trusted.
const AGAIN: Duration = Duration::from_millis(50);
const ATTEMPTS: u32 = 8;
/// Elements end a moment later in the kernel than by our clock, which is read in whole seconds.
const LINGERING: u64 = 2;
/// Timeouts are set anew so often, in seconds: a clock is adjusted by half a thousandth at most.
const RELOAD: u64 = 3600;
/// The least time between two comparisons that others' changes give rise to.
const SPACED: Duration = Duration::from_millis(200);
/// What takes longer is done again where times are in it, and this often at the most: on a machine that stood still meanwhile
/// the kernel's times and ours are further apart than they should be.
const STANDSTILL: Duration = Duration::from_secs(1);
const TRIES: u32 = 4;
/// News in a row that are acted on before the worker gets its turn.
const ROUNDS: usize = 16;

/// The right to change the container's network, and the knowledge of what it should be.
pub(crate) struct Guard {
    sockets: Sockets,
    /// The kernel has chains at the cards.
    egress: bool,
    config: StoredConfig,
    wiring: Wiring,
    /// As found at the start, with cards and the host's addresses of now.
    facts: HostFacts,
    /// What the operator had set when the sets were last loaded, its times by our clock.
    live: Live,
    granting: Granting,
    clock: Steady,
    /// When what has a time was last loaded.
    loaded: u64,
    /// Of the tables when they were last as they should be; `None`: to be compared.
    generation: Option<u32>,
    /// When something that failed, or was put off, is tried again.
    again: Option<Instant>,
    /// How often in a row a comparison could not be made.
    failures: u32,
    /// When the last comparison was made.
    compared: Option<Instant>,
    /// What the worker does not know yet.
    untold: Vec<News>,
    tampered: Option<Tampering>,
}

struct Sockets {
    nft: NftSocket,
    /// Readable when a table was changed in the container's namespace.
    tables: Option<netlink::News>,
    /// The container's cards, those to come too.
    cards: Option<Rtnl>,
    /// The host's own addresses, where the table must know them.
    host: Option<Rtnl>,
}

struct Tampering {
    what: String,
    cut: bool,
}

impl Guard {
    /// Takes over what the hook has loaded, for a container whose operator state is in `state`.
    pub(crate) fn new(
        inherited: &mut Inherited,
        config: &ParentConfig,
        state: &Dir,
    ) -> Result<Self, anyhow::Error> {
        let filtered = config.facts.network == Network::Filtered;
        let mut watch = |fd| match inherited.take_fd(fd) {
            Err(error) if filtered => Err(error),
            found => Ok(found.ok()),
        };
        let sockets = Sockets {
            tables: watch(Fd::NftablesNews)?.map(netlink::News::from),
            cards: watch(Fd::Links)?.map(Rtnl::from),
            host: if filtered { Some(rtnl::news()?) } else { None },
            nft: NftSocket::from(inherited.take_fd(Fd::Nftables)?),
        };
        let live = kept_live(state)?;
        Ok(Self::with(sockets, inherited.stored_config()?, config.wiring, config.facts.clone(), live))
    }

    fn with(sockets: Sockets, config: StoredConfig, wiring: Wiring, facts: HostFacts, live: Live) -> Self {
        let clock = Steady::new();
        let mut guard = Guard {
            sockets,
            egress: false,
            config,
            wiring,
            facts,
            live: clock.of_live(live),
            granting: Granting::default(),
            loaded: clock.now(),
            clock,
            generation: None,
            again: None,
            failures: 0,
            compared: None,
            untold: Vec::new(),
            tampered: None,
        };
        guard.egress = guard.has_egress();
        // What was changed since the hook has compared it is news; if there is none, what is there now is what it loaded.
        let generation = guard.sockets.nft.generation().ok();
        let changed = guard.sockets.tables.as_ref().is_some_and(|tables| tables.drain().unwrap_or(true));
        if changed {
            guard.again = Some(Instant::now());
        } else {
            guard.generation = generation;
        }
        guard
    }

    /// What becomes readable when [`Guard::attend`] has something to do.
    pub(crate) fn watched(&self) -> Vec<BorrowedFd<'_>> {
        let tables = self.sockets.tables.as_ref().map(|news| news.as_fd());
        let links =
            [&self.sockets.cards, &self.sockets.host].into_iter().flatten().map(|socket| socket.as_fd());
        tables.into_iter().chain(links).collect()
    }

    /// How long until [`Guard::attend`] has something to do without being told.
    pub(crate) fn due(&self) -> Option<Duration> {
        if !self.untold.is_empty() {
            return Some(Duration::ZERO);
        }
        let again = self.again.map(|at| at.saturating_duration_since(Instant::now()));
        let granting = self.granting.due(self.clock.now()).filter(|_| !self.is_cut_off());
        let drift = Duration::from_secs((self.loaded + RELOAD).saturating_sub(self.clock.now()));
        let drift = Some(drift).filter(|_| self.has_times() && !self.is_cut_off());
        [again, granting, drift].into_iter().flatten().min()
    }

    /// What a worker that starts now must know.
    pub(crate) fn standing(&mut self, config: &ParentConfig) -> Vec<News> {
        self.untold.clear();
        let tampered = self.tampered.as_ref().map(Tampering::news);
        let cards =
            Some(News::Cards(self.facts.cards.clone())).filter(|_| self.facts.cards != config.facts.cards);
        tampered.into_iter().chain(cards).collect()
    }

    /// Acts on all that has happened; what the worker must know of it.
    pub(crate) fn attend(&mut self) -> Vec<News> {
        for _ in 0..ROUNDS {
            let heard = |socket: &Option<Rtnl>| socket.as_ref().is_some_and(|s| s.heard().unwrap_or(true));
            let changed = self.sockets.tables.as_ref().is_some_and(|tables| tables.drain().unwrap_or(true));
            let (cards, host) = (heard(&self.sockets.cards), heard(&self.sockets.host));
            let waited = self.again.take_if(|at| *at <= Instant::now()).is_some();
            if !(changed || cards || host || waited) {
                break;
            }
            if cards || waited {
                self.note_cards();
            }
            if host || waited {
                self.note_addresses();
            }
            self.check_in_time();
        }
        if !self.is_cut_off() {
            self.keep_grants();
            self.keep_time();
        }
        std::mem::take(&mut self.untold)
    }

    /// Loads what the operator's file in `state` says into the kernel's sets.
    pub(crate) fn apply(&mut self, state: &Dir) -> anyhow::Result<()> {
        self.refuse_if_cut_off()?;
        let live = self.clock.of_live(kept_live(state)?);
        self.put(live)
    }

    /// Lets nothing pass until the next [`Guard::apply`], whatever the operator's file says: a full disk must not keep a
    /// container open.
    pub(crate) fn close(&mut self) -> anyhow::Result<()> {
        self.refuse_if_cut_off()?;
        self.put(Live { state: Some(Shield::Block), until: None, ..self.live.clone() })
    }

    fn put(&mut self, live: Live) -> anyhow::Result<()> {
        let before = std::mem::replace(&mut self.live, live);
        self.granting.forget_rules();
        self.granting.expire(self.clock.now().saturating_sub(LINGERING));
        let loaded = self.load(|plan, now, _| plan.live_sets(now));
        if loaded.is_err() {
            self.live = before;
            // Part of a large change may be made: what was there comes back, or the comparison tells.
            let _ = self.load(|plan, now, _| plan.live_sets(now));
        }
        self.loaded = self.clock.now();
        self.generation = None;
        self.check();
        loaded?;
        self.refuse_if_cut_off()
    }

    /// Lets packets pass to those of `addresses` that an answer for `name` may give out; returns which.
    pub(crate) fn grant(
        &mut self,
        name: &Name,
        ttl: u32,
        addresses: &[IpAddr],
    ) -> anyhow::Result<Vec<IpAddr>> {
        self.refuse_if_cut_off()?;
        if self.facts.network == Network::Sealed {
            bail!("nothing is granted to a container without a card");
        }
        self.granting.know(&self.facts, || Ok(self.config.read::<SupervisorConfig>()?.policy))?;
        let is_own = |ip| self.sockets.host.as_ref().is_none_or(|host| host.is_local(ip).unwrap_or(true));
        let (asked, now) = (Asked { name, ttl, addresses }, self.clock.now());
        let granted = self.granting.grant(&self.live, &self.facts, is_own, &asked, now);
        let granted = granted.map_err(anyhow::Error::msg)?;
        if granted.new {
            let loaded = self.load_granted();
            if loaded.is_err() {
                self.granting.take_back();
            }
            loaded?;
        }
        Ok(granted.addresses)
    }

    /// Lets what ends soon stand longer where a flow to it is open.
    fn keep_grants(&mut self) {
        let now = self.clock.now();
        if self.granting.due(now).is_none_or(|due| !due.is_zero()) {
            return;
        }
        if let Err(error) = self.keep_ending(now) {
            eprintln!("{}: flows to granted addresses: {error:#}", layout::SUPERVISOR);
        }
        self.granting.expire(now.saturating_sub(LINGERING));
    }

    fn keep_ending(&mut self, now: u64) -> anyhow::Result<()> {
        self.granting.know(&self.facts, || Ok(self.config.read::<SupervisorConfig>()?.policy))?;
        let ending = self.granting.ending(now);
        let addresses: HashSet<IpAddr> = ending.iter().map(|(_, ip)| *ip).collect();
        let mut flows = Vec::new();
        if !addresses.is_empty() {
            conntrack::flows(&self.sockets.nft, |flow| {
                flows.extend(Some(flow).filter(|flow| addresses.contains(&flow.dst)));
            })?;
        }
        match self.granting.keep(&self.live, &self.facts, &ending, &flows, now) {
            true => self.load_granted(),
            false => Ok(()),
        }
    }

    /// The kernel's timeouts and our clock drift apart where the clock is being adjusted.
    fn keep_time(&mut self) {
        if !self.has_times() || self.clock.now() < self.loaded + RELOAD {
            return;
        }
        self.loaded = self.clock.now();
        self.generation = None;
        self.again.get_or_insert_with(Instant::now);
        if let Err(error) = self.load(|plan, now, _| plan.live_sets(now)) {
            eprintln!("{}: times of addresses: {error:#}", layout::SUPERVISOR);
        }
    }

    /// Whether anything in the kernel's sets ends by itself.
    fn has_times(&self) -> bool {
        self.live.until.is_some() || !self.granting.is_empty()
    }

    /// Where nobody else has changed anything since the last comparison, and nobody did while we changed something, there
    /// is nothing to compare: a grant must not cost the reading of ten thousand elements.
    fn load_granted(&mut self) -> anyhow::Result<()> {
        let before = self.sockets.nft.generation()?;
        let loaded = self.replace(|unix| self.granting.sets(&self.live, &self.facts, unix));
        let ours = before.wrapping_add(1);
        let alone = loaded.is_ok() && self.generation == Some(before);
        match self.sockets.nft.generation() {
            Ok(after) if alone && after == ours => self.generation = Some(ours),
            _ => {
                self.generation = None;
                self.again.get_or_insert_with(Instant::now);
            }
        }
        loaded
    }

    /// Loads some of the table's sets as they should be now.
    fn load(&self, sets: impl Fn(&Plan, &Now<'_>, &Wiring) -> Vec<Set>) -> anyhow::Result<()> {
        let plan = self.plan()?;
        let now = |unix| Now { live: &self.live, grants: self.granting.grants(), unix };
        self.replace(|unix| sets(&plan, &now(unix), &self.wiring))
    }

    fn replace(&self, sets: impl Fn(u64) -> Vec<Set>) -> anyhow::Result<()> {
        for _ in 0..TRIES {
            let started = Instant::now();
            self.sockets.nft.replace_sets(&sets(self.clock.now()))?;
            if !self.has_times() || started.elapsed() < STANDSTILL {
                break;
            }
        }
        Ok(())
    }

    /// Read anew each time: a policy may be large, and the parent is to stay small.
    fn plan(&self) -> anyhow::Result<Plan> {
        Ok(Plan { policy: self.config.read::<SupervisorConfig>()?.policy, facts: self.facts.clone() })
    }

    /// As [`Guard::check`], but who changes other tables all the time does not keep us busy all the time.
    fn check_in_time(&mut self) {
        match self.compared.map(|at| at + SPACED).filter(|&at| at > Instant::now()) {
            Some(at) if !self.is_as_compared() => {
                self.again.get_or_insert(at);
            }
            _ => self.check(),
        }
    }

    fn is_as_compared(&self) -> bool {
        self.generation.is_some() && self.generation == self.sockets.nft.generation().ok()
    }

    /// Compares, unless nobody has changed anything since it was last done.
    fn check(&mut self) {
        if self.tampered.is_some() || self.is_as_compared() {
            return;
        }
        // Read before: what is changed during the comparison is to be compared again.
        let generation = self.sockets.nft.generation().ok();
        let compared = self.compare();
        self.compared = Some(Instant::now());
        let failed = match compared {
            Ok(()) => {
                (self.generation, self.failures) = (generation, 0);
                return;
            }
            Err(error) => error,
        };
        match failed.downcast_ref() {
            Some(NftError::Differs(what)) => {
                let what = what.clone();
                self.found_tampering(what);
            }
            _ if self.failures < ATTEMPTS => {
                self.failures += 1;
                self.again = Some(Instant::now() + AGAIN);
            }
            _ => self.found_tampering(format!("they cannot be read: {failed:#}")),
        }
    }

    fn compare(&mut self) -> anyhow::Result<()> {
        // A card that came or went a moment ago is no tampering.
        self.note_cards();
        let plan = self.plan()?;
        let timed = self.has_times();
        let mut compared = Ok(());
        for _ in 0..TRIES {
            let (started, unix) = (Instant::now(), self.clock.now());
            for back in 0..=if timed { LINGERING } else { 0 } {
                let now =
                    Now { live: &self.live, grants: self.granting.grants(), unix: unix.saturating_sub(back) };
                compared = self.sockets.nft.verify(&plan.ruleset(&self.wiring, &now));
                if compared.is_ok() {
                    break;
                }
            }
            if compared.is_ok() || !timed || started.elapsed() < STANDSTILL {
                break;
            }
        }
        compared?;
        match plan.egress(&self.wiring).filter(|_| self.egress) {
            Some(egress) => Ok(self.sockets.nft.verify_egress(&egress)?),
            None => Ok(()),
        }
    }

    fn found_tampering(&mut self, what: String) {
        eprintln!("{}: the container's tables were changed by somebody else: {what}", layout::SUPERVISOR);
        // Without a card there is nothing to leave by, whatever the tables say.
        let cut = self.facts.network == Network::Filtered || !self.facts.cards.is_empty();
        if cut {
            self.cut_off();
        }
        let tampering = Tampering { what, cut };
        self.untold.push(tampering.news());
        self.tampered = Some(tampering);
    }

    fn cut_off(&self) {
        self.remove_cards();
        if let Err(error) = self.block() {
            eprintln!("{}: a blocking table could not be loaded: {error:#}", layout::SUPERVISOR);
        }
    }

    fn block(&self) -> anyhow::Result<()> {
        let policy = Policy { shield: Shield::Block, ..Policy::default() };
        let plan = Plan { policy, facts: self.facts.clone() };
        let grants = Default::default();
        let now = Now { live: &Live::default(), grants: &grants, unix: self.clock.now() };
        Ok(self.sockets.nft.reload(&plan.ruleset(&self.wiring, &now))?)
    }

    fn try_again(&mut self, what: &str, error: &dyn std::fmt::Display) {
        eprintln!("{}: {what}: {error:#}", layout::SUPERVISOR);
        self.again = Some(Instant::now() + AGAIN);
    }

    fn is_cut_off(&self) -> bool {
        self.tampered.as_ref().is_some_and(|tampering| tampering.cut)
    }

    fn refuse_if_cut_off(&self) -> anyhow::Result<()> {
        match &self.tampered {
            Some(Tampering { what, cut: true }) => {
                bail!("the container is cut off because its tables were changed ({what}): start it again")
            }
            _ => Ok(()),
        }
    }
}

impl Tampering {
    fn news(&self) -> News {
        News::Tampered { what: self.what.clone(), cut: self.cut }
    }
}
