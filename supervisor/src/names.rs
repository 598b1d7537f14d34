//! Which name has which virtual address. An allocation is in the state folder's `names` file before it is answered, so
//! that an address means the same name after a crash of the worker and after a restart of the container.

mod answered;

use answered::Answered;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use terok_policy::{Name, virt};

/// New names a minute that only a wildcard, an `any` rule or a lowered shield lets through (E7).
const BUDGET: usize = 60;
const BUDGET_WINDOW: Duration = Duration::from_secs(60);
/// Names without a virtual address that were paid for and may be asked for again; beyond them all are paid for anew.
const PAID: usize = 1024;

/// Names and their indexes, and the real addresses that were answered for names.
pub(crate) struct NameTable {
    inner: RefCell<Inner>,
    answered: RefCell<Answered>,
}

struct Inner {
    file: File,
    by_name: HashMap<Name, u32>,
    by_index: HashMap<u32, Name>,
    next: u32,
    /// When the budgeted names of the last window came up, oldest first.
    spent: VecDeque<Instant>,
    /// Budgeted names that have no index: they are answered with real addresses.
    paid: HashSet<Name>,
}

/// Why a name gets no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NameTableError {
    /// Too many new names in the last minute (E7).
    #[error("more than {BUDGET} new names in a minute; wait, or name them in a rule of their own")]
    Budget,
    /// The pool has no address left.
    #[error("every virtual address is taken; remove the container and create it again")]
    Full,
    /// The file could not be written, so the allocation would not survive.
    #[error("names: {0}; free space in the state folder")]
    File(#[from] io::Error),
}

impl NameTable {
    /// Reads the allocations so far from `file` (read and append). A torn last line, left by a crash, is cut off: its
    /// name was never answered.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        let mut inner = Inner {
            by_name: HashMap::new(),
            by_index: HashMap::new(),
            next: virt::FIRST_NAME,
            spent: VecDeque::new(),
            paid: HashSet::new(),
            file,
        };
        inner.read()?;
        Ok(NameTable { inner: RefCell::new(inner), answered: RefCell::default() })
    }

    /// The name behind an index.
    pub(crate) fn name(&self, index: u32) -> Option<Name> {
        self.inner.borrow().by_index.get(&index).cloned()
    }

    /// The index of a name that has one.
    pub(crate) fn index(&self, name: &Name) -> Option<u32> {
        self.inner.borrow().by_name.get(name).copied()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.inner.borrow().by_name.len()
    }

    /// The index of `name`, allocated and written down if it has none. For names that a rule spells out.
    pub(crate) fn allocate(&self, name: &Name) -> Result<u32, NameTableError> {
        self.allocate_all(std::iter::once(name))?;
        self.index(name).ok_or(NameTableError::Full)
    }

    /// As [`NameTable::allocate`], for a name that no rule spells out: new ones are limited (E7).
    pub(crate) fn allocate_budgeted(&self, name: &Name, now: Instant) -> Result<u32, NameTableError> {
        if let Some(index) = self.index(name) {
            return Ok(index);
        }
        self.inner.borrow_mut().afford(now)?;
        let index = self.allocate(name)?;
        self.inner.borrow_mut().spent.push_back(now);
        Ok(index)
    }

    /// Charges a name that no rule spells out and that is answered with its real addresses: the question leaves the
    /// host, so it can carry data as well (E7).
    pub(crate) fn pay(&self, name: &Name, now: Instant) -> Result<(), NameTableError> {
        let mut inner = self.inner.borrow_mut();
        if inner.paid.contains(name) {
            return Ok(());
        }
        inner.afford(now)?;
        if inner.paid.len() >= PAID {
            inner.paid.clear();
        }
        inner.paid.insert(name.clone());
        inner.spent.push_back(now);
        Ok(())
    }

    /// Takes note that `address` is answered for `name`.
    pub(crate) fn answer(&self, name: &Name, address: IpAddr) {
        self.answered.borrow_mut().answer(name, address);
    }

    /// Whether `address` was answered for `name` before, as far as it is remembered.
    pub(crate) fn is_answered(&self, name: &Name, address: IpAddr) -> bool {
        self.answered.borrow().has(name, address)
    }

    /// The name that `address` was last answered for.
    pub(crate) fn answered(&self, address: IpAddr) -> Option<Name> {
        self.answered.borrow().name(address).cloned()
    }

    /// Allocates every name that has no index yet, in order, with one write.
    pub(crate) fn allocate_all<'a>(
        &self,
        names: impl Iterator<Item = &'a Name>,
    ) -> Result<(), NameTableError> {
        let mut inner = self.inner.borrow_mut();
        let mut fresh: Vec<(u32, &Name)> = Vec::new();
        let mut seen = HashSet::new();
        let mut text = String::new();
        let mut next = inner.next;
        for name in names {
            if inner.by_name.contains_key(name) || !seen.insert(name) {
                continue;
            }
            if next >= virt::END {
                return Err(NameTableError::Full);
            }
            text.push_str(&format!("{next} {name}\n"));
            fresh.push((next, name));
            next += 1;
        }
        if fresh.is_empty() {
            return Ok(());
        }
        inner.append(&text)?;
        for (index, name) in fresh {
            inner.by_name.insert(name.clone(), index);
            inner.by_index.insert(index, name.clone());
        }
        inner.next = next;
        Ok(())
    }
}

impl Inner {
    fn read(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(&self.file);
        let (mut whole, mut line) = (0, Vec::new());
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            if read == 0 || !line.ends_with(b"\n") {
                break;
            }
            whole += read as u64;
            let Some((index, name)) = parse(&line) else { continue };
            if self.by_index.contains_key(&index) || self.by_name.contains_key(&name) {
                continue;
            }
            self.next = self.next.max(index + 1);
            self.by_name.insert(name.clone(), index);
            self.by_index.insert(index, name);
        }
        drop(reader);
        if self.file.metadata()?.len() != whole {
            self.file.set_len(whole)?;
        }
        Ok(())
    }

    /// Whether one more name fits into the last window.
    fn afford(&mut self, now: Instant) -> Result<(), NameTableError> {
        while self.spent.front().is_some_and(|&t| now.saturating_duration_since(t) >= BUDGET_WINDOW) {
            self.spent.pop_front();
        }
        if self.spent.len() >= BUDGET {
            return Err(NameTableError::Budget);
        }
        Ok(())
    }

    /// All of `text` or nothing of it.
    fn append(&mut self, text: &str) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        self.file.write_all(text.as_bytes()).inspect_err(|_| {
            // A part of the text may be there already; a line that stays torn is cut off at the next start.
            let _ = self.file.set_len(before);
        })
    }
}

fn parse(line: &[u8]) -> Option<(u32, Name)> {
    let (index, name) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    let index = index.parse().ok().filter(|i| (virt::FIRST_NAME..virt::END).contains(i))?;
    Some((index, Name::parse(name).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn table(file: &tempfile::NamedTempFile) -> NameTable {
        NameTable::open(File::options().read(true).append(true).open(file.path()).unwrap()).unwrap()
    }

    #[test]
    fn an_allocation_survives_reopening() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = table(&file).allocate(&name("b.example")).unwrap();
        let again = table(&file);
        assert_eq!(first, virt::FIRST_NAME);
        assert_eq!(again.index(&name("b.example")), Some(first));
        assert_eq!(again.name(first), Some(name("b.example")));
        assert_eq!(again.allocate(&name("a.example")).unwrap(), first + 1);
        assert_eq!(again.allocate(&name("b.example")).unwrap(), first);
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_its_index_is_given_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "256 a.example\n257 b.exa").unwrap();
        let names = table(&file);
        assert_eq!(names.len(), 1);
        assert_eq!(names.allocate(&name("c.example")).unwrap(), 257);
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "256 a.example\n257 c.example\n");
    }

    #[test]
    fn an_index_never_changes_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "256 a.example\n256 b.example\n300 a.example\n").unwrap();
        let names = table(&file);
        assert_eq!(names.name(256), Some(name("a.example")));
        assert_eq!(names.index(&name("b.example")), None);
        assert_eq!(names.name(300), None);
    }

    #[test]
    fn new_names_of_a_wildcard_are_limited_a_minute() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let names = table(&file);
        let now = Instant::now();
        for n in 0..BUDGET {
            names.allocate_budgeted(&name(&format!("l{n}.example")), now).unwrap();
        }
        assert!(matches!(names.allocate_budgeted(&name("more.example"), now), Err(NameTableError::Budget)));
        assert!(names.allocate_budgeted(&name("l0.example"), now).is_ok());
        assert!(names.allocate(&name("spelt-out.example")).is_ok());
        assert!(names.allocate_budgeted(&name("more.example"), now + BUDGET_WINDOW).is_ok());
    }

    #[test]
    fn names_with_real_addresses_share_the_budget_and_are_paid_for_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let names = table(&file);
        let now = Instant::now();
        names.allocate_budgeted(&name("virtual.example"), now).unwrap();
        for n in 1..BUDGET {
            names.pay(&name(&format!("l{n}.example")), now).unwrap();
        }
        assert!(matches!(names.pay(&name("more.example"), now), Err(NameTableError::Budget)));
        assert!(matches!(names.allocate_budgeted(&name("more.example"), now), Err(NameTableError::Budget)));
        assert!(names.pay(&name("l1.example"), now).is_ok());
        assert!(names.pay(&name("more.example"), now + BUDGET_WINDOW).is_ok());
        assert_eq!(names.index(&name("l1.example")), None);
    }

    #[test]
    fn a_full_disk_allocates_nothing() {
        let Ok(full) = File::options().read(true).append(true).open("/dev/full") else { return };
        let table = NameTable {
            inner: RefCell::new(Inner {
                file: full,
                by_name: HashMap::new(),
                by_index: HashMap::new(),
                next: virt::FIRST_NAME,
                spent: VecDeque::new(),
                paid: HashSet::new(),
            }),
            answered: RefCell::default(),
        };
        assert!(matches!(table.allocate(&name("a.example")), Err(NameTableError::File(_))));
        assert_eq!(table.index(&name("a.example")), None);
    }
}
