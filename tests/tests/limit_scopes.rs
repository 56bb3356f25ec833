//! The state of limits in the kernel: found again by name, through reloads, restarts and refusals.
//!
//! Without a policy file and without packets: the scopes are put into a compiled policy by hand, and what the programs would
//! write is written through the pins.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

use aya::maps::{Array, Map, MapData};
use firewall_common::LAYOUT_VERSION;
use firewall_common::limit::{COUNTS, Kind, MAX_LOCAL, scope};
use ravelin::datapath::limits::Sizes;
use ravelin::datapath::{Datapath, DatapathError, Options, detach_all};
use ravelin::policy::compile::{Compiled, Scope, compile};
use ravelin::policy::model::{Policy, ServiceId};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

const SMALL: Sizes = Sizes {
    sources: 1024,
    connections: 2048,
    memory: 1_000_000,
};
/// All tables.
const ALL: u8 = 0b1111;

/// Pins of its own, which go when this goes.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Pins {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "scopes-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        Pins(Path::new("/sys/fs/bpf/ravelin").join(name))
    }

    fn open(&self, limits: Sizes) -> Datapath {
        let options = Options {
            flows: 512,
            limits,
            ..Options::default()
        };
        Datapath::open_with(&self.0, options).unwrap()
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.0.join(format!("v{LAYOUT_VERSION}/{name}"))
    }

    fn array<T: aya::Pod>(&self, name: &str) -> Array<MapData, T> {
        Map::Array(MapData::from_pin(self.pin(name)).unwrap())
            .try_into()
            .unwrap()
    }

    fn words(&self, place: u32) -> [u64; scope::WORDS as usize] {
        self.array::<[u64; 16]>("SCOPES").get(&place, 0).unwrap()
    }

    fn write(&self, place: u32, word: u32, value: u64) {
        let mut words = self.words(place);
        words[word as usize] = value;
        self.array::<[u64; 16]>("SCOPES").set(place, words, 0).unwrap();
    }

    /// The place of each scope of the image in a slot.
    fn bound(&self, slot: u32, scopes: u32) -> Vec<u32> {
        let bindings: Array<MapData, u32> = self.array("BINDINGS");
        (0..scopes)
            .map(|local| bindings.get(&(slot * MAX_LOCAL + local), 0).unwrap())
            .collect()
    }

    /// The place of a scope by its name's hash, if it has one.
    fn places(&self) -> Vec<u32> {
        (0..64)
            .filter(|place| self.words(*place)[scope::NAME as usize] != 0)
            .collect()
    }

    fn line(&self, place: u32, table: u32, line: u32) -> [u64; 8] {
        self.array::<[u64; 8]>(&format!("sketch-{place}-{table}"))
            .get(&line, 0)
            .unwrap()
    }

    fn write_line(&self, place: u32, table: u32, line: u32, words: [u64; 8]) {
        self.array::<[u64; 8]>(&format!("sketch-{place}-{table}"))
            .set(line, words, 0)
            .unwrap();
    }

    /// What the directory of the layout holds of tables.
    fn tables(&self) -> usize {
        let entries = std::fs::read_dir(self.pin("")).unwrap();
        entries
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_str().unwrap().starts_with("sketch-")
            })
            .count()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = detach_all(&self.0);
    }
}

fn policy(scopes: &[(&str, u8)]) -> Compiled {
    let mut compiled = compile(&Policy::default()).unwrap();
    compiled.scopes = scopes
        .iter()
        .map(|(name, needs)| Scope {
            name: (*name).into(),
            service: ServiceId(0),
            needs: *needs,
        })
        .collect();
    compiled
}

const LINE: [u64; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn a_reload_and_a_restart_are_no_amnesty() {
    let pins = Pins::new();
    let mut datapath = pins.open(SMALL);
    datapath.switch(&policy(&[("web", 0), ("api", ALL)]), 1).unwrap();
    // The first image goes into slot 1.
    let [web, api] = pins.bound(1, 2)[..] else {
        panic!("two scopes")
    };
    assert!(web != 0 && api != 0 && web != api);
    let (web, api) = (web - 1, api - 1);
    let words = pins.words(api);
    assert_eq!(
        (
            words[scope::SKETCH_MASK as usize],
            words[scope::COUNT_MASK as usize]
        ),
        (127, 255)
    );
    assert_eq!(pins.tables(), 4);
    pins.write(api, scope::CONNECTIONS, 77);
    pins.write(web, scope::TOTALS, 42);
    pins.write_line(api, Kind::Packets as u32, 127, LINE);
    pins.write_line(api, COUNTS, 255, LINE);

    // Other numbers in the image, the same scopes.
    datapath
        .switch(&policy(&[("api", ALL), ("new", 1), ("web", 0)]), 2)
        .unwrap();
    let held = |pins: &Pins| {
        assert_eq!(pins.words(api)[scope::CONNECTIONS as usize], 77);
        assert_eq!(pins.words(web)[scope::TOTALS as usize], 42);
        assert_eq!(pins.line(api, Kind::Packets as u32, 127), LINE);
        assert_eq!(pins.line(api, COUNTS, 255), LINE);
    };
    let bound = pins.bound(0, 3);
    assert_eq!((bound[0], bound[2]), (api + 1, web + 1));
    assert_eq!(pins.bound(1, 2), [0, 0], "the slot that is left holds nothing");
    held(&pins);

    drop(datapath);
    let mut datapath = pins.open(SMALL);
    held(&pins);
    assert_eq!(pins.bound(0, 3), bound);
    datapath.switch(&policy(&[("web", 0), ("api", ALL)]), 3).unwrap();
    held(&pins);
    assert_eq!(pins.bound(1, 2), [web + 1, api + 1]);
    assert_eq!(pins.places().len(), 2, "what nobody uses is free");
    assert_eq!(pins.tables(), 4);
}

#[test]
fn a_scope_that_went_comes_back_empty() {
    let pins = Pins::new();
    let mut datapath = pins.open(SMALL);
    datapath.switch(&policy(&[("api", ALL)]), 1).unwrap();
    let api = pins.bound(1, 1)[0] - 1;
    pins.write(api, scope::CONNECTIONS, 77);
    pins.write_line(api, 0, 0, LINE);
    datapath.switch(&policy(&[]), 2).unwrap();
    assert_eq!((pins.places(), pins.tables()), (vec![], 0));
    datapath.switch(&policy(&[("other", ALL)]), 3).unwrap();
    let other = pins.bound(1, 1)[0] - 1;
    assert_eq!(other, api, "the place is free again");
    assert_eq!(pins.words(other)[scope::CONNECTIONS as usize], 0);
    assert_eq!(pins.line(other, 0, 0), [0; 8]);
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let pins = Pins::new();
    // Three sketches of 8 KiB and counts of 16 KiB a scope.
    let mut datapath = pins.open(Sizes {
        memory: 70_000,
        ..SMALL
    });
    datapath.switch(&policy(&[("api", ALL)]), 1).unwrap();
    let api = pins.bound(1, 1)[0] - 1;
    pins.write(api, scope::CONNECTIONS, 77);
    let (before, tables) = (pins.words(api), pins.tables());

    let error = datapath
        .switch(&policy(&[("api", ALL), ("web", ALL)]), 2)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the limits of the policy take 0.1 MB of kernel memory (8 tables of 2 limits), more than the 0.1 MB that \
         `memory` of [limits] in agent.toml grants: raise it, or lower `sources` or `connections` there"
    );
    let names: Vec<String> = (0..=MAX_LOCAL).map(|number| number.to_string()).collect();
    let many: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 0)).collect();
    let error = datapath.switch(&policy(&many), 2).unwrap_err();
    assert!(
        matches!(error, DatapathError::TooManyScopes { count: 1025 }),
        "{error}"
    );

    assert_eq!(datapath.in_force().unwrap().unwrap().generation, 1);
    assert_eq!((pins.words(api), pins.tables()), (before, tables));
    assert_eq!((pins.bound(1, 1), pins.bound(0, 2)), (vec![api + 1], vec![0, 0]));
    assert_eq!(pins.places(), [api]);
}

#[test]
fn a_table_of_another_size_starts_anew_and_the_totals_stay() {
    let pins = Pins::new();
    let mut datapath = pins.open(SMALL);
    let one = policy(&[("api", ALL)]);
    datapath.switch(&one, 1).unwrap();
    let api = pins.bound(1, 1)[0] - 1;
    pins.write(api, scope::TOTALS, 42);
    for table in 0..=COUNTS {
        pins.write_line(api, table, 3, LINE);
    }
    drop(datapath);
    for (sources, lines) in [(4096, 512), (1024, 128)] {
        let mut datapath = pins.open(Sizes { sources, ..SMALL });
        datapath.switch(&one, 2).unwrap();
        assert_eq!(pins.words(api)[scope::SKETCH_MASK as usize], lines - 1);
        assert_eq!(pins.words(api)[scope::TOTALS as usize], 42);
        for table in 0..COUNTS {
            assert_eq!(pins.line(api, table, 3), [0; 8], "table {table} of {sources}");
            pins.write_line(api, table, lines as u32 - 1, LINE);
            pins.write_line(api, table, 3, LINE);
        }
        assert_eq!(pins.line(api, COUNTS, 3), LINE, "its size is the same");
    }
}

#[test]
fn what_an_agent_left_behind_that_died_half_way_is_freed() {
    let pins = Pins::new();
    let mut datapath = pins.open(SMALL);
    datapath.switch(&policy(&[("api", 1)]), 1).unwrap();
    let api = pins.bound(1, 1)[0] - 1;
    drop(datapath);
    // A scope that was named and never bound, and a binding in the slot that is not in force.
    pins.write(9, scope::NAME, 4711);
    let mut bindings: Array<MapData, u32> = pins.array("BINDINGS");
    bindings.set(5, 10, 0).unwrap();
    let mut datapath = pins.open(SMALL);
    assert_eq!(pins.places(), [api]);
    assert_eq!(pins.bound(0, 8), [0; 8]);
    datapath.switch(&policy(&[("api", 1), ("web", 1)]), 2).unwrap();
    assert_eq!((pins.places().len(), pins.tables()), (2, 2));
}
