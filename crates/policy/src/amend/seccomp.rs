//! The `linux.seccomp` object of the OCI runtime specification, read and rewritten as crun and runc hand it to libseccomp:
//! a rule whose action is the default is skipped, a rule without conditions swallows conditional ones of the same system
//! call, and several conditions on one argument are alternatives. Because of the second, a system call is limited by
//! rewriting its rules, never by adding to them.

use super::AmendError;
use serde_json::{Map, Value, json};

pub(super) const EPERM: u64 = 1;
pub(super) const ENOSYS: u64 = 38;
/// The bits of an argument that the kernel reads of an `int`.
pub(super) const INT: u64 = 0xffff_ffff;

#[derive(Debug, Clone)]
pub(super) struct Filter {
    /// The object without `syscalls`.
    rest: Map<String, Value>,
    default: Action,
    rules: Vec<Rule>,
}

/// What a [`Filter`] says of one system call.
#[derive(Debug)]
pub(super) struct About<'a> {
    default: &'a Action,
    /// Those that concern it and are no default.
    rules: Vec<&'a Rule>,
}

/// What happens to a system call. `errno` is EPERM where not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Action {
    name: String,
    errno: u64,
}

/// One entry of `syscalls`.
#[derive(Debug, Clone, PartialEq)]
struct Rule {
    names: Vec<String>,
    action: Action,
    args: Vec<Arg>,
    /// The entry as written, for fields that are not read here.
    raw: Map<String, Value>,
}

/// A condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arg {
    pub(super) index: usize,
    pub(super) op: Op,
    pub(super) value: u64,
    /// The wanted bits, for [`Op::MaskedEq`], whose `value` is the mask.
    pub(super) two: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    MaskedEq,
}

/// A form of a system call that may pass, with sample calls to ask the engine's own filter about.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) args: Vec<Arg>,
    pub(super) samples: Vec<Args>,
}

/// Arguments of a system call.
pub(super) type Args = [u64; 6];

impl Action {
    pub(super) fn errno(errno: u64) -> Self {
        Action { name: "SCMP_ACT_ERRNO".into(), errno }
    }
    fn allow() -> Self {
        Action { name: "SCMP_ACT_ALLOW".into(), errno: EPERM }
    }
    /// Whether the call may happen: by itself, or by somebody else's leave (trace, notify), or by a name unknown here.
    pub(super) fn permits(&self) -> bool {
        !self.refuses()
    }
    fn refuses(&self) -> bool {
        self.is_errno()
            || matches!(
                self.name.as_str(),
                "SCMP_ACT_KILL" | "SCMP_ACT_KILL_PROCESS" | "SCMP_ACT_KILL_THREAD" | "SCMP_ACT_TRAP"
            )
    }
    fn is_errno(&self) -> bool {
        self.name == "SCMP_ACT_ERRNO"
    }
}

impl Arg {
    /// The low 32 bits are `value`: what the kernel sees of an `int`.
    pub(super) fn int(index: usize, value: u32) -> Self {
        Arg { index, op: Op::MaskedEq, value: INT, two: value.into() }
    }
    pub(super) fn masked(index: usize, mask: u64, wanted: u64) -> Self {
        Arg { index, op: Op::MaskedEq, value: mask, two: wanted }
    }
    pub(super) fn equal(index: usize, value: u64) -> Self {
        Arg { index, op: Op::Eq, value, two: 0 }
    }
    pub(super) fn greater(index: usize, value: u64) -> Self {
        Arg { index, op: Op::Gt, value, two: 0 }
    }
    pub(super) fn other_than(index: usize, value: u64) -> Self {
        Arg { index, op: Op::Ne, value, two: 0 }
    }

    fn holds(&self, args: &Args) -> bool {
        let Some(&arg) = args.get(self.index) else { return false };
        match self.op {
            Op::Ne => arg != self.value,
            Op::Lt => arg < self.value,
            Op::Le => arg <= self.value,
            Op::Eq => arg == self.value,
            Op::Ge => arg >= self.value,
            Op::Gt => arg > self.value,
            Op::MaskedEq => arg & self.value == self.two,
        }
    }
}

impl Rule {
    fn concerns(&self, syscall: &str) -> bool {
        self.names.iter().any(|name| name == syscall)
    }
    fn holds(&self, args: &Args) -> bool {
        let before = |n: usize| self.args.iter().take(n);
        let mut again =
            self.args.iter().enumerate().map(|(n, arg)| before(n).any(|one| one.index == arg.index));
        let alternatives = again.any(|again| again);
        let mut held = self.args.iter().map(|arg| arg.holds(args));
        if alternatives { held.any(|held| held) } else { held.all(|held| held) }
    }
}

impl Filter {
    /// What stands for "no filter": everything is allowed, on every ABI of the machine.
    pub(super) fn allowing() -> Self {
        let architectures = match std::env::consts::ARCH {
            "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
            "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
            // Without a list the filter is for the native ABI, and calls by any other are killed.
            _ => json!([]),
        };
        let mut rest = Map::new();
        rest.insert("defaultAction".into(), "SCMP_ACT_ALLOW".into());
        rest.insert("architectures".into(), architectures);
        Filter { rest, default: Action::allow(), rules: Vec::new() }
    }

    pub(super) fn read(seccomp: &Value) -> Result<Self, AmendError> {
        const PLACE: &str = "/linux/seccomp";
        let mut rest = map(seccomp, PLACE)?.clone();
        let default = action(&rest, PLACE, "defaultAction", "defaultErrnoRet")?;
        let syscalls = rest.remove("syscalls").unwrap_or(Value::Null);
        let mut rules = Vec::new();
        for (index, entry) in list(&syscalls, &format!("{PLACE}/syscalls"))?.iter().enumerate() {
            rules.push(rule(entry, &format!("{PLACE}/syscalls/{index}"))?);
        }
        Ok(Filter { rest, default, rules })
    }

    pub(super) fn into_value(self) -> Value {
        let mut value = self.rest;
        value.insert("syscalls".into(), self.rules.into_iter().map(Rule::into_value).collect());
        Value::Object(value)
    }

    pub(super) fn allows_by_default(&self) -> bool {
        self.default.permits()
    }

    /// What the filter says of one system call. Asked many times, it is to be picked once: engines' profiles name hundreds.
    pub(super) fn about(&self, syscall: &str) -> About<'_> {
        let rules = self.rules.iter().filter(|rule| rule.concerns(syscall) && rule.action != self.default);
        About { default: &self.default, rules: rules.collect() }
    }

    /// Refuses the call whatever its arguments.
    pub(super) fn refuse(&mut self, syscalls: &[&str], errno: u64) {
        for syscall in syscalls {
            self.strip(syscall, |_| true);
        }
        self.push(syscalls, Action::errno(errno), Vec::new());
    }

    /// As [`Filter::refuse`], ahead of all other rules and by a rule that is no default.
    ///
    /// libseccomp writes each rule for `socket` and its like again for `socketcall` on i386, with the call's number in
    /// place of the family: copies that allow what they should not, or contradict each other. It drops them where
    /// `socketcall` is decided already, but a rule that is the default decides nothing.
    pub(super) fn refuse_first(&mut self, syscall: &str) {
        let errno = if self.default == Action::errno(EPERM) { ENOSYS } else { EPERM };
        self.refuse(&[syscall], errno);
        self.rules.rotate_right(1);
    }

    /// Whether a rule of its own refuses the call whatever its arguments.
    pub(super) fn refuses_expressly(&self, syscall: &str) -> bool {
        let mut rules =
            self.rules.iter().filter(|rule| rule.concerns(syscall) && rule.action != self.default);
        rules.next().is_some_and(|first| first.args.is_empty() && first.action.refuses())
            && rules.next().is_none()
    }

    /// Lets the call through only in `forms`, and in these only as far as the filter did before.
    /// `refusals` are the other forms, as far as they can be told: answered with EPERM.
    pub(super) fn limit(&mut self, syscall: &str, forms: &[Form], refusals: &[Vec<Arg>]) {
        if self.default.permits() {
            let ours = |rule: &Rule| {
                rule.action == Action::errno(EPERM)
                    && refusals.contains(&rule.args)
                    && rule.names == [syscall]
            };
            self.rules.retain(|rule| !ours(rule));
            self.strip(syscall, |rule| rule.action.permits());
            if self.rules.iter().any(|rule| rule.concerns(syscall) && rule.args.is_empty()) {
                return;
            }
        } else {
            let about = self.about(syscall);
            let decided: Vec<(Vec<Arg>, Action)> =
                forms.iter().flat_map(|form| about.decided(form)).collect();
            let any = decided.iter().any(|(_, action)| action.permits());
            self.strip(syscall, |_| true);
            for (form, action) in decided {
                if action != self.default {
                    self.push(&[syscall], action, form);
                }
            }
            // A profile that kills keeps killing; one that lets nothing through needs no exception.
            if !self.default.is_errno() || !any {
                return;
            }
        }
        for refusal in refusals {
            self.push(&[syscall], Action::errno(EPERM), refusal.clone());
        }
    }

    /// Takes `syscall` out of the rules that `which` picks.
    fn strip(&mut self, syscall: &str, which: impl Fn(&Rule) -> bool) {
        for rule in self.rules.iter_mut().filter(|rule| which(rule)) {
            rule.names.retain(|name| name != syscall);
        }
        self.rules.retain(|rule| !rule.names.is_empty());
    }

    fn push(&mut self, syscalls: &[&str], action: Action, args: Vec<Arg>) {
        let names = syscalls.iter().map(|&name| name.to_owned()).collect();
        self.rules.push(Rule { names, action, args, raw: Map::new() });
    }
}

impl<'a> About<'a> {
    /// Every action libseccomp may take for the call: more than one where rules with different actions hold.
    fn actions(&self, args: &Args) -> Vec<&'a Action> {
        let mut actions: Vec<&Action> =
            self.rules.iter().filter(|rule| rule.args.is_empty()).map(|rule| &rule.action).collect();
        if actions.is_empty() {
            actions = self.rules.iter().filter(|rule| rule.holds(args)).map(|rule| &rule.action).collect();
        }
        if actions.is_empty() {
            actions.push(self.default);
        }
        actions
    }

    /// Whether the call may be let through.
    pub(super) fn permits(&self, args: &Args) -> bool {
        self.actions(args).into_iter().any(Action::permits)
    }

    /// What `form` gets: as a whole, or by the first argument where samples that differ in it are told apart.
    fn decided(&self, form: &Form) -> Vec<(Vec<Arg>, Action)> {
        let mut firsts: Vec<(u64, Action)> = Vec::new();
        for sample in &form.samples {
            let action = self.strictest(sample);
            match firsts.iter_mut().find(|(first, _)| *first == sample[0]) {
                Some((_, known)) if known.permits() => *known = action,
                Some(_) => {}
                None => firsts.push((sample[0], action)),
            }
        }
        if let Some((_, action)) = firsts.first()
            && firsts.iter().all(|(_, other)| other == action)
        {
            return vec![(form.args.clone(), action.clone())];
        }
        let apart = |first: u64| {
            let rest = form.args.iter().filter(|arg| arg.index != 0).copied();
            std::iter::once(Arg::masked(0, INT, first)).chain(rest).collect()
        };
        firsts.into_iter().map(|(first, action)| (apart(first), action)).collect()
    }

    /// The strictest action for the call.
    pub(super) fn strictest(&self, args: &Args) -> Action {
        let actions = self.actions(args);
        actions
            .iter()
            .find(|action| action.refuses())
            .or(actions.first())
            .map_or_else(Action::allow, |&a| a.clone())
    }
}

impl Rule {
    fn into_value(self) -> Value {
        let mut value = self.raw;
        value.insert("names".into(), self.names.into());
        if !value.contains_key("action") {
            if self.action.is_errno() {
                value.insert("errnoRet".into(), self.action.errno.into());
            }
            value.insert("action".into(), self.action.name.into());
            if !self.args.is_empty() {
                value.insert("args".into(), self.args.into_iter().map(Arg::into_value).collect());
            }
        }
        Value::Object(value)
    }
}

const OPS: [(&str, Op); 7] = [
    ("SCMP_CMP_NE", Op::Ne),
    ("SCMP_CMP_LT", Op::Lt),
    ("SCMP_CMP_LE", Op::Le),
    ("SCMP_CMP_EQ", Op::Eq),
    ("SCMP_CMP_GE", Op::Ge),
    ("SCMP_CMP_GT", Op::Gt),
    ("SCMP_CMP_MASKED_EQ", Op::MaskedEq),
];

impl Arg {
    fn into_value(self) -> Value {
        let op = OPS.iter().find(|(_, op)| *op == self.op).map_or("", |(name, _)| name);
        let mut value = json!({ "index": self.index, "value": self.value, "op": op });
        if self.op == Op::MaskedEq {
            value["valueTwo"] = self.two.into();
        }
        value
    }
}

fn rule(entry: &Value, place: &str) -> Result<Rule, AmendError> {
    let raw = map(entry, place)?.clone();
    let names = list(raw.get("names").unwrap_or(&Value::Null), &format!("{place}/names"))?;
    let names = names.iter().map(|name| name.as_str().map(str::to_owned));
    let names = names
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| wrong(&format!("{place}/names"), "is not a list of names"))?;
    let action = action(&raw, place, "action", "errnoRet")?;
    let mut args = Vec::new();
    for (index, value) in
        list(raw.get("args").unwrap_or(&Value::Null), &format!("{place}/args"))?.iter().enumerate()
    {
        let place = format!("{place}/args/{index}");
        let number = |key: &str| value.get(key).map_or(Some(0), Value::as_u64);
        let op = value.get("op").and_then(Value::as_str);
        let op = op.and_then(|op| OPS.iter().find(|(name, _)| *name == op)).map(|&(_, op)| op);
        let index = number("index").and_then(|index| usize::try_from(index).ok()).filter(|index| *index < 6);
        match (index, number("value"), number("valueTwo"), op) {
            (Some(index), Some(value), Some(two), Some(op)) => args.push(Arg { index, op, value, two }),
            _ => return Err(wrong(&place, "is not a condition on an argument")),
        }
    }
    Ok(Rule { names, action, args, raw })
}

fn action(map: &Map<String, Value>, place: &str, key: &str, errno_key: &str) -> Result<Action, AmendError> {
    let name = map.get(key).and_then(Value::as_str);
    let name = name.ok_or_else(|| wrong(&format!("{place}/{key}"), "is not an action"))?.to_owned();
    let errno = map.get(errno_key).and_then(Value::as_u64).unwrap_or(EPERM);
    Ok(Action { name, errno })
}

fn map<'a>(value: &'a Value, place: &str) -> Result<&'a Map<String, Value>, AmendError> {
    value.as_object().ok_or_else(|| wrong(place, "is not an object"))
}

fn list<'a>(value: &'a Value, place: &str) -> Result<&'a [Value], AmendError> {
    match value {
        Value::Null => Ok(&[]),
        Value::Array(list) => Ok(list),
        _ => Err(wrong(place, "is not a list")),
    }
}

fn wrong(place: &str, reason: &str) -> AmendError {
    AmendError { place: place.to_owned(), reason: reason.to_owned() }
}
