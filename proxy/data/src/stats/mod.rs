//! Statistics under Envoy's names, counted in per-worker cells and summed on read.
//!
//! A [`Group`] holds all cells of one scope (`cluster.<name>.`, `http.<prefix>.` …): one run of cells per worker, so that counting is a plain load and
//! store on memory no other worker writes. Slot 0 is shared by all other threads and uses atomic additions. A run is made when its thread counts
//! there for the first time: most of ten thousand clusters see no traffic. Handles are fetched at compile time, and asking [`Registry`] for a scope
//! that is alive returns the same cells: counters survive configuration changes.

mod groups;
mod handle;

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use foldhash::{HashMap, HashMapExt};
use parking_lot::Mutex;

pub use groups::*;
pub use handle::{Counter, Gauge, Histogram, Level, Tally};

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(0) };
}

/// Makes this thread count in the cells of worker `index` (from 0). Called once, by the worker itself.
pub fn enter_worker(index: usize) {
    SLOT.set(index + 1);
}

/// Upper bounds of Envoy's default histogram buckets; one more bucket holds the rest.
pub const BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0, 300000.0,
    600000.0, 1800000.0, 3600000.0,
];

/// Cells of a histogram: the buckets, the one above them, and the sum of the values.
const HISTOGRAM_CELLS: usize = BUCKETS.len() + 2;

/// What a statistic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Is set as a whole.
    Level,
    /// Distribution of values.
    Histogram,
}

impl Kind {
    const fn cells(self) -> usize {
        match self {
            Kind::Counter => 1,
            // Ups and downs are counted apart: a gauge may rise on one worker and fall on another, and one that ever moved stays "used" at zero.
            Kind::Gauge => 2,
            // Value, and whether it was ever set.
            Kind::Level => 2,
            Kind::Histogram => HISTOGRAM_CELLS,
        }
    }
}

/// Name and kind of a statistic within its group.
#[derive(Clone, Copy, Debug)]
pub struct Def {
    /// Follows the scope's prefix.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Exists from its first use on, instead of from the start.
    pub late: bool,
    /// Kept apart from what threads count, see [`Group::apart`].
    apart: bool,
    /// Its first cell, among those kept apart or among the others.
    at: usize,
}

/// Definitions with their cells one after the other. The third value says which are kept apart, the fourth which are late.
const fn placed<const N: usize>(stats: [(&'static str, Kind, bool, bool); N]) -> [Def; N] {
    let mut defs = [Def { name: "", kind: Kind::Counter, late: false, apart: false, at: 0 }; N];
    let (mut kept_apart, mut others) = (0, 0);
    let mut i = 0;
    while i < N {
        let (name, kind, apart, late) = stats[i];
        let end = if apart { &mut kept_apart } else { &mut others };
        defs[i] = Def { name, kind, late, apart, at: *end };
        *end += kind.cells();
        i += 1;
    }
    defs
}

/// Cells of all definitions that are kept apart, or of all others.
fn width(defs: &[Def], apart: bool) -> usize {
    defs.iter().filter(|def| def.apart == apart).map(|def| def.kind.cells()).sum()
}

/// A scope's place in the tree of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Full prefix with its trailing dot: `cluster.backend.`; empty for none.
    pub prefix: String,
    /// The prefix with the tags' values cut out, as Envoy's tag extraction leaves it: `cluster.`
    pub stem: String,
    /// Tag names (`envoy.cluster_name`) and values.
    pub tags: Vec<(&'static str, String)>,
}

/// All statistics of one scope.
#[derive(Debug)]
pub struct Group {
    /// Where it stands.
    pub scope: Scope,
    /// What it holds.
    pub defs: &'static [Def],
    cells: Cells,
    /// Cells of what configuration sets, made when the first one is: a cluster's are from the start, when nothing else of it has been counted. Apart,
    /// so that a cluster that nobody calls does not cost the cells of everything that could be counted, 1.7 kB.
    apart: OnceLock<Box<[AtomicU64]>>,
    /// Zero points after `/reset_counters`, by cell.
    zero: Mutex<Option<Box<[u64]>>>,
    codes: [OnceLock<Codes>; 2],
    /// Statistics exist from their first use on, instead of from the start.
    pub sparse: bool,
    /// Groups that were made while requests were served and live as long as this one, by what follows this one's prefix.
    below: OnceLock<ArcSwap<HashMap<Box<str>, Arc<Group>>>>,
    /// Who lists them.
    registry: Weak<Registry>,
}

/// The cells of all threads: a run for each slot that was ever written.
#[derive(Debug)]
struct Cells {
    width: usize,
    runs: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

impl Cells {
    fn new(width: usize, slots: usize) -> Self {
        Cells { width, runs: (0..slots).map(|_| OnceLock::new()).collect() }
    }

    fn run(&self, slot: usize) -> Option<&[AtomicU64]> {
        let run = self.runs.get(slot)?;
        Some(run.get_or_init(|| (0..self.width).map(|_| AtomicU64::new(0)).collect()))
    }

    fn written(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.runs.iter().filter_map(|run| run.get().map(Box::as_ref))
    }

    /// Adds to this thread's cell.
    fn add(&self, at: usize, n: u64) {
        let slot = SLOT.get();
        if slot == 0 || slot >= self.runs.len() {
            if let Some(cell) = self.shared(at) {
                cell.fetch_add(n, Relaxed);
            }
        } else if let Some(cell) = self.run(slot).and_then(|run| run.get(at)) {
            // Only this thread writes here, so no atomic addition is needed.
            cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
        }
    }

    /// The cell that all threads but the workers share.
    fn shared(&self, at: usize) -> Option<&AtomicU64> {
        self.run(0)?.get(at)
    }

    /// The histogram whose cells begin at `at`.
    fn histogram(&self, at: usize) -> Reading {
        let mut buckets = [0; BUCKETS.len() + 1];
        for (i, bucket) in buckets.iter_mut().enumerate() {
            *bucket = self.sum(at + i);
        }
        let used = buckets.iter().any(|count| *count > 0);
        Reading { value: Value::Histogram { buckets, sum: self.sum(at + BUCKETS.len() + 1) }, used }
    }

    /// Records a value in the histogram whose cells begin at `at`.
    fn record(&self, at: usize, value: u64) {
        let bucket = BUCKETS.partition_point(|bound| *bound < value as f64);
        self.add(at + bucket, 1);
        self.add(at + BUCKETS.len() + 1, value);
    }

    fn sum(&self, at: usize) -> u64 {
        self.written().filter_map(|run| run.get(at)).map(|cell| cell.load(Relaxed)).fold(0, u64::wrapping_add)
    }
}

/// Responses by code: `upstream_rq_200`, their classes and their total; and how long they took, `upstream_rq_time`.
#[derive(Debug)]
struct Codes {
    /// Those of the codes, then the histogram's.
    cells: Cells,
    /// Codes that are not in [`COMMON_CODES`].
    rare: Mutex<BTreeMap<u16, u64>>,
}

/// Status codes that have cells of their own.
const COMMON_CODES: [u16; 34] = [
    100, 101, 200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 408, 409, 410, 412, 413,
    415, 422, 426, 429, 431, 499, 500, 501, 502, 503, 504,
];

impl Group {
    fn new(scope: Scope, defs: &'static [Def], slots: usize) -> Self {
        Group {
            scope,
            defs,
            cells: Cells::new(width(defs, false), slots),
            apart: OnceLock::new(),
            zero: Mutex::new(None),
            codes: [OnceLock::new(), OnceLock::new()],
            sparse: false,
            below: OnceLock::new(),
            registry: Weak::new(),
        }
    }

    /// Most groups below one: who makes requests has a say in their names.
    pub const MOST_BELOW: usize = 1_000;

    /// The group that is called `<this one's prefix><rest>`. `None` if there are too many already.
    fn below(&self, rest: &str, defs: &'static [Def]) -> Option<Arc<Group>> {
        let known = self.below.get_or_init(ArcSwap::default).load();
        if let Some(group) = known.get(rest) {
            return Some(group.clone());
        }
        (known.len() < Self::MOST_BELOW).then(|| self.below_always(rest, defs))
    }

    fn below_always(&self, rest: &str, defs: &'static [Def]) -> Arc<Group> {
        let below = self.below.get_or_init(ArcSwap::default);
        if let Some(group) = below.load().get(rest) {
            return group.clone();
        }
        let Scope { prefix, stem, tags } = &self.scope;
        let scope = Scope { prefix: format!("{prefix}{rest}"), stem: format!("{stem}{rest}"), tags: tags.clone() };
        let group = match self.registry.upgrade() {
            Some(registry) => registry.find_or_make(scope, defs, true),
            None => Arc::new(Group::new(scope, defs, self.cells.runs.len())),
        };
        below.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.insert(rest.into(), group.clone());
            known
        });
        group
    }

    fn add(&self, at: usize, n: u64) {
        self.cells.add(at, n);
    }

    fn sum(&self, at: usize) -> u64 {
        self.cells.sum(at)
    }

    /// A cell among those kept apart, to be written.
    fn apart(&self, at: usize) -> Option<&AtomicU64> {
        let make = || (0..width(self.defs, true)).map(|_| AtomicU64::new(0)).collect();
        self.apart.get_or_init(make).get(at)
    }

    /// The value of a cell among those kept apart.
    fn level(&self, at: usize) -> u64 {
        self.apart.get().and_then(|cells| cells.get(at)).map_or(0, |cell| cell.load(Relaxed))
    }

    /// Where the zero point of a counter is kept.
    fn zero_at(&self, def: &Def) -> usize {
        if def.apart { self.cells.width + def.at } else { def.at }
    }

    fn count(&self, def: &Def) -> u64 {
        if def.apart { self.level(def.at) } else { self.sum(def.at) }
    }

    /// Reads the statistic at position `index` of `defs`.
    pub fn read(&self, index: usize) -> Reading {
        match self.defs.get(index) {
            None => Reading::default(),
            Some(def) if def.kind == Kind::Histogram => self.cells.histogram(def.at),
            Some(def) => Reading { value: Value::Number(self.number(def)), used: self.used(def) },
        }
    }

    /// The value of a counter, gauge or level of this group.
    pub fn number(&self, def: &Def) -> u64 {
        match def.kind {
            Kind::Counter => {
                let zero = self.zero.lock();
                let base = zero.as_ref().and_then(|zero| zero.get(self.zero_at(def))).copied().unwrap_or(0);
                self.count(def).wrapping_sub(base)
            }
            Kind::Gauge => self.sum(def.at).saturating_sub(self.sum(def.at + 1)),
            Kind::Level => self.level(def.at),
            Kind::Histogram => 0,
        }
    }

    /// Whether a statistic of this group was ever written.
    pub fn used(&self, def: &Def) -> bool {
        match def.kind {
            Kind::Counter => self.count(def) > 0,
            Kind::Gauge => self.sum(def.at) > 0,
            Kind::Level => self.level(def.at + 1) > 0,
            Kind::Histogram => (0..=BUCKETS.len()).any(|bucket| self.sum(def.at + bucket) > 0),
        }
    }

    /// Reads a counter or gauge worker by worker.
    pub fn read_by_worker(&self, index: usize) -> Vec<Reading> {
        let Some(def) = self.defs.get(index) else { return Vec::new() };
        let cell = |run: Option<&Box<[AtomicU64]>>, at: usize| {
            run.and_then(|run| run.get(at)).map_or(0, |cell| cell.load(Relaxed))
        };
        let workers = self.cells.runs.iter().skip(1).map(OnceLock::get);
        let reading = |run| {
            let up = cell(run, def.at);
            let down = if def.kind == Kind::Gauge { cell(run, def.at + 1) } else { 0 };
            Reading { value: Value::Number(up.saturating_sub(down)), used: up > 0 }
        };
        workers.map(reading).collect()
    }

    /// Sets all counters back to zero, as `/reset_counters` does. Gauges and histograms stay.
    pub fn reset_counters(&self) {
        let mut zero = vec![0; self.cells.width + width(self.defs, true)].into_boxed_slice();
        for def in self.defs.iter().filter(|def| def.kind == Kind::Counter) {
            if let Some(zero) = zero.get_mut(self.zero_at(def)) {
                *zero = self.count(def);
            }
        }
        *self.zero.lock() = Some(zero);
        for codes in self.codes.iter().filter_map(OnceLock::get) {
            for cell in codes.cells.written().flat_map(|run| run.iter().take(COMMON_CODES.len())) {
                cell.store(0, Relaxed);
            }
            codes.rare.lock().clear();
        }
    }

    fn codes_of(&self, origin: Origin) -> &Codes {
        self.codes[origin as usize].get_or_init(|| Codes {
            cells: Cells::new(COMMON_CODES.len() + HISTOGRAM_CELLS, self.cells.runs.len()),
            rare: Mutex::default(),
        })
    }

    /// Times of responses, in milliseconds, by origin of the request; `None` until there is one.
    pub fn times(&self, origin: Origin) -> Option<Reading> {
        let reading = self.codes[origin as usize].get()?.cells.histogram(COMMON_CODES.len());
        reading.used.then_some(reading)
    }

    fn count_code(&self, origin: Origin, code: u16) {
        let codes = self.codes_of(origin);
        match COMMON_CODES.binary_search(&code) {
            Ok(at) => codes.cells.add(at, 1),
            Err(_) => *codes.rare.lock().entry(code).or_default() += 1,
        }
    }

    /// Responses by status code and origin of the request, for those codes that occurred.
    pub fn codes(&self, origin: Origin) -> Vec<(u16, u64)> {
        let Some(codes) = self.codes[origin as usize].get() else { return Vec::new() };
        let mut counts: BTreeMap<u16, u64> = codes.rare.lock().clone();
        for (at, code) in COMMON_CODES.iter().enumerate() {
            let count = codes.cells.sum(at);
            if count > 0 {
                counts.insert(*code, count);
            }
        }
        counts.into_iter().collect()
    }
}

/// Whether a request came from inside, by the connection manager's `internal_address_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `internal.`
    Internal = 0,
    /// `external.`
    External = 1,
}

/// A statistic's value at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The value.
    pub value: Value,
    /// It was ever written: what Envoy's `usedonly` asks.
    pub used: bool,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Counter, gauge or level.
    Number(u64),
    /// Not cumulative; the last bucket is what lies above all bounds.
    Histogram {
        /// Counts by bucket of [`BUCKETS`].
        buckets: [u64; BUCKETS.len() + 1],
        /// Sum of all values.
        sum: u64,
    },
}

impl Default for Value {
    fn default() -> Self {
        Value::Number(0)
    }
}

/// Counters and gauges of one endpoint. Shared by all workers: least-request balancing and `/clusters` read them.
#[derive(Debug, Default)]
pub struct EndpointStats {
    /// Connections now.
    pub cx_active: AtomicU64,
    /// Connections ever.
    pub cx_total: AtomicU64,
    /// Failed connects.
    pub cx_connect_fail: AtomicU64,
    /// Requests (for TCP: connections) now.
    pub rq_active: AtomicU64,
    /// Requests ever.
    pub rq_total: AtomicU64,
    /// Answers other than 5xx.
    pub rq_success: AtomicU64,
    /// 5xx answers and resets.
    pub rq_error: AtomicU64,
    /// Timeouts.
    pub rq_timeout: AtomicU64,
}

/// All groups that are alive.
#[derive(Debug)]
pub struct Registry {
    me: Weak<Registry>,
    slots: usize,
    groups: Mutex<HashMap<String, Weak<Group>>>,
}

impl Registry {
    /// For `workers` worker threads; any other thread counts in a shared slot.
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new_cyclic(|me| Registry { me: me.clone(), slots: workers + 1, groups: Mutex::new(HashMap::new()) })
    }

    /// The group of this scope and kind; made if it is not alive.
    fn group(&self, scope: Scope, defs: &'static [Def]) -> Arc<Group> {
        self.find_or_make(scope, defs, false)
    }

    fn find_or_make(&self, scope: Scope, defs: &'static [Def], sparse: bool) -> Arc<Group> {
        // One prefix may carry groups of several kinds (a listener's own and its TLS): the first name tells them apart.
        let key = format!("{}\0{}", scope.prefix, defs.first().map_or("", |def| def.name));
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(&key).and_then(Weak::upgrade) {
            return group;
        }
        if groups.len() > 64 && groups.len() == groups.capacity() {
            groups.retain(|_, group| group.strong_count() > 0);
        }
        let registry = self.me.clone();
        let group = Arc::new(Group { sparse, registry, ..Group::new(scope, defs, self.slots) });
        groups.insert(key, Arc::downgrade(&group));
        group
    }

    /// All living groups, by prefix.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        let mut groups: Vec<_> = self.groups.lock().values().filter_map(Weak::upgrade).collect();
        groups.sort_by(|a, b| a.scope.prefix.cmp(&b.scope.prefix));
        groups
    }
}
