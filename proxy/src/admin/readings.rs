//! All statistics in the order of their names, without a copy of them.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    rc::Rc,
    sync::Arc,
};

use shika_data::stats::{Def, Group, Kind, Origin, Reading, Value};

/// One statistic.
pub struct Stat {
    /// Full name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What it reads.
    pub reading: Reading,
}

/// The statistics of one group, in the order of their names.
///
/// What Envoy keeps as counters per response code is derived here: `upstream_rq_<code>`, `upstream_rq_<class>xx` and `upstream_rq_completed`, in total
/// and under `internal.` and `external.`; as in Envoy they exist from the first response on. So is what listeners have worker by worker.
pub struct GroupStats {
    group: Arc<Group>,
    entries: Entries,
}

enum Entries {
    /// Positions in the group's definitions.
    Plain(Rc<[usize]>),
    /// With derived ones among them.
    Mixed(Vec<(Cow<'static, str>, Entry)>),
}

enum Entry {
    Defined(usize),
    Derived(Kind, Box<Reading>),
}

/// Orders of definitions, by the definitions' address and whether late ones exist: there are few kinds of groups and many groups.
#[derive(Default)]
pub struct Orders(HashMap<(usize, bool), Rc<[usize]>>);

impl Orders {
    fn of(&mut self, group: &Group) -> Rc<[usize]> {
        let late = group.defs.iter().any(|def| def.late && group.used(def));
        let key = (group.defs.as_ptr() as usize, late);
        self.0
            .entry(key)
            .or_insert_with(|| {
                let mut order: Vec<usize> = (0..group.defs.len()).collect();
                order.retain(|index| late || group.defs.get(*index).is_some_and(|def| !def.late));
                order.sort_unstable_by_key(|index| group.defs.get(*index).map(|def| def.name));
                order.into()
            })
            .clone()
    }
}

impl GroupStats {
    /// Of `group`, as it is now.
    pub fn new(group: Arc<Group>, orders: &mut Orders) -> Self {
        let order = orders.of(&group);
        let derived = derived(&group);
        let entries = if group.sparse {
            Entries::Plain(order.iter().copied().filter(|index| group.read(*index).used).collect())
        } else if derived.is_empty() {
            Entries::Plain(order)
        } else {
            let mut mixed: Vec<(Cow<'static, str>, Entry)> = order
                .iter()
                .filter_map(|index| Some((Cow::Borrowed(group.defs.get(*index)?.name), Entry::Defined(*index))))
                .chain(
                    derived
                        .into_iter()
                        .map(|(name, kind, reading)| (Cow::Owned(name), Entry::Derived(kind, Box::new(reading)))),
                )
                .collect();
            mixed.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            Entries::Mixed(mixed)
        };
        GroupStats { group, entries }
    }

    /// What all full names begin with.
    pub fn prefix(&self) -> &str {
        &self.group.scope.prefix
    }

    /// What the group holds. A list of its own for each kind of group.
    pub fn defs(&self) -> &'static [Def] {
        self.group.defs
    }

    /// The position in [`Self::defs`] of the one at `at`; `None` for those that are derived.
    pub fn def(&self, at: usize) -> Option<usize> {
        match &self.entries {
            Entries::Plain(order) => order.get(at).copied(),
            Entries::Mixed(mixed) => match mixed.get(at)?.1 {
                Entry::Defined(index) => Some(index),
                Entry::Derived(..) => None,
            },
        }
    }

    /// Number of statistics.
    pub fn len(&self) -> usize {
        match &self.entries {
            Entries::Plain(order) => order.len(),
            Entries::Mixed(mixed) => mixed.len(),
        }
    }

    /// The full name of the one at `at`.
    pub fn name(&self, at: usize) -> Option<String> {
        let name = match &self.entries {
            Entries::Plain(order) => self.group.defs.get(*order.get(at)?)?.name,
            Entries::Mixed(mixed) => mixed.get(at)?.0.as_ref(),
        };
        let mut full = String::with_capacity(self.group.scope.prefix.len() + name.len());
        full.push_str(&self.group.scope.prefix);
        full.push_str(name);
        Some(full)
    }

    /// What the one at `at` is.
    pub fn kind(&self, at: usize) -> Option<Kind> {
        match &self.entries {
            Entries::Plain(order) => Some(self.group.defs.get(*order.get(at)?)?.kind),
            Entries::Mixed(mixed) => match mixed.get(at)?.1 {
                Entry::Defined(index) => Some(self.group.defs.get(index)?.kind),
                Entry::Derived(kind, _) => Some(kind),
            },
        }
    }

    /// Whether the one at `at` was ever written.
    pub fn used(&self, at: usize) -> bool {
        match self.def(at).and_then(|index| self.group.defs.get(index)) {
            Some(def) => self.group.used(def),
            None => self.read(at).is_some_and(|(_, reading)| reading.used),
        }
    }

    /// The value of the one at `at`, if it is one of the group's own counters, gauges and levels: read a million times for a page.
    pub fn number(&self, at: usize) -> Option<u64> {
        let def = self.group.defs.get(self.def(at)?)?;
        (def.kind != Kind::Histogram).then(|| self.group.number(def))
    }

    /// Kind and value of the one at `at`.
    pub fn read(&self, at: usize) -> Option<(Kind, Reading)> {
        let index = match &self.entries {
            Entries::Plain(order) => *order.get(at)?,
            Entries::Mixed(mixed) => match &mixed.get(at)?.1 {
                Entry::Defined(index) => *index,
                Entry::Derived(kind, reading) => return Some((*kind, Reading::clone(reading))),
            },
        };
        Some((self.group.defs.get(index)?.kind, self.group.read(index)))
    }
}

fn derived(group: &Group) -> Vec<(String, Kind, Reading)> {
    let mut derived = by_worker(group);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (origin, prefix) in [(Origin::Internal, "internal."), (Origin::External, "external.")] {
        if let Some(times) = group.times(origin) {
            derived.push((format!("{prefix}upstream_rq_time"), Kind::Histogram, times));
        }
        for (code, count) in group.codes(origin) {
            for prefix in [prefix, ""] {
                *counts.entry(format!("{prefix}upstream_rq_{code}")).or_default() += count;
                *counts.entry(format!("{prefix}upstream_rq_{}xx", code / 100)).or_default() += count;
                *counts.entry(format!("{prefix}upstream_rq_completed")).or_default() += count;
            }
        }
    }
    let counter = |(name, count)| (name, Kind::Counter, Reading { value: Value::Number(count), used: true });
    derived.extend(counts.into_iter().map(counter));
    derived
}

/// `worker_<n>.downstream_cx_active` and `_total` of a listener's own group.
fn by_worker(group: &Group) -> Vec<(String, Kind, Reading)> {
    let names = ["downstream_cx_total", "downstream_cx_active"];
    let of_listener =
        group.scope.prefix.starts_with("listener.") && group.defs.iter().zip(names).all(|(def, name)| def.name == name);
    let mut derived = Vec::new();
    for (index, def) in group.defs.iter().enumerate().take(if of_listener { names.len() } else { 0 }) {
        let workers = group.read_by_worker(index).into_iter().enumerate();
        derived.extend(workers.map(|(worker, reading)| (format!("worker_{worker}.{}", def.name), def.kind, reading)));
    }
    derived
}

/// All statistics by name. A group's prefix may be the start of another's name, so groups are merged as they open.
pub struct Sorted {
    /// Not opened yet, the first one last.
    closed: Vec<Arc<Group>>,
    open: Vec<GroupStats>,
    heap: BinaryHeap<Reverse<(String, usize, usize)>>,
    orders: Orders,
}

impl Sorted {
    /// Of these groups, which are in the order of their prefixes.
    pub fn new(mut groups: Vec<Arc<Group>>) -> Self {
        groups.reverse();
        Sorted { closed: groups, open: Vec::new(), heap: BinaryHeap::new(), orders: Orders::default() }
    }

    fn push(&mut self, group: usize, at: usize) {
        if let Some(name) = self.open.get(group).and_then(|stats| stats.name(at)) {
            self.heap.push(Reverse((name, group, at)));
        }
    }
}

impl Iterator for Sorted {
    type Item = Stat;

    fn next(&mut self) -> Option<Stat> {
        loop {
            // Every name of a group begins with its prefix, so none comes before the prefix itself.
            while let Some(group) = self.closed.last()
                && self.heap.peek().is_none_or(|Reverse((name, ..))| group.scope.prefix <= *name)
            {
                if self.heap.is_empty() {
                    self.open.clear();
                }
                if let Some(group) = self.closed.pop() {
                    let stats = GroupStats::new(group, &mut self.orders);
                    self.open.push(stats);
                    self.push(self.open.len() - 1, 0);
                }
            }
            let Reverse((name, group, at)) = self.heap.pop()?;
            self.push(group, at + 1);
            if let Some((kind, reading)) = self.open.get(group).and_then(|stats| stats.read(at)) {
                return Some(Stat { name, kind, reading });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shika_data::stats::{ClusterStats, HttpStats, ListenerStats, Registry, Scope, SslStats};

    use super::*;

    fn scope(prefix: &str) -> Scope {
        Scope { prefix: prefix.into(), ..Scope::default() }
    }

    #[test]
    fn names_come_in_order_with_nested_groups_and_derived_counters() {
        let registry = Registry::new(1);
        let cluster = ClusterStats::new(&registry, scope("cluster.a."));
        let _nested = SslStats::new(&registry, scope("cluster.a.ssl."));
        let _dotted = ClusterStats::new(&registry, scope("cluster.a.b."));
        let _http = HttpStats::new(&registry, scope("http.x."));
        let _listener = ListenerStats::new(&registry, scope("listener.127.0.0.1_0."));
        cluster.count_code(Origin::External, 503);
        cluster.count_code(Origin::Internal, 200);
        cluster.count_code(Origin::Internal, 204);
        let all: Vec<_> = Sorted::new(registry.groups()).collect();
        let names: Vec<_> = all.iter().map(|stat| stat.name.as_str()).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(names, sorted);
        let value = |name: &str| all.iter().find(|stat| stat.name == name).map(|stat| stat.reading.value.clone());
        for (name, count) in [
            ("cluster.a.upstream_rq_503", 1),
            ("cluster.a.upstream_rq_2xx", 2),
            ("cluster.a.upstream_rq_completed", 3),
            ("cluster.a.internal.upstream_rq_2xx", 2),
            ("cluster.a.external.upstream_rq_completed", 1),
        ] {
            assert_eq!(value(name), Some(Value::Number(count)), "{name}");
        }
        assert_eq!(value("cluster.a.external.upstream_rq_200"), None);
        assert_eq!(value("cluster.a.b.upstream_rq_completed"), None);
    }
}
