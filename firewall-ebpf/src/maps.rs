//! The maps, by the names under which they are pinned. Layouts: `firewall_common`.

use crate::apart::Part;
use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use firewall_common::ban::{Ban, BanKey};
use firewall_common::control::{AddressKey, Config, Control, SLOTS};
use firewall_common::counter::{Counter, INTERFACE_CELLS, InterfaceCounter, Tally};
use firewall_common::event::{Event, Sampler};
use firewall_common::image::PAGE_SIZE;
use firewall_common::verdict::Reason;
use firewall_common::{cookie, flow, fragment, limit};

/// A page of an image, aligned for words.
#[repr(C, align(8))]
pub struct PageBytes(pub [u64; PAGE_SIZE / 8]);

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
/// Inner arrays may differ in size (kernel commit 4a8f87e60f6d).
const INNER: usize = MMAPABLE | BPF_F_INNER_MAP as usize;

pub type ImageMap = Array<PageBytes, 1, INNER>;
pub type CounterMap = Array<Counter, 1, INNER>;

#[btf_map]
pub static IMAGES: ArrayOfMaps<ImageMap, { SLOTS as usize }> = ArrayOfMaps::new();

#[btf_map]
pub static COUNTERS: ArrayOfMaps<CounterMap, { SLOTS as usize }> = ArrayOfMaps::new();

#[btf_map]
pub static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();

#[btf_map]
pub static CONFIG: Array<Config, { SLOTS as usize }> = Array::new();

#[btf_map]
pub static IFACES: PerCpuArray<InterfaceCounter, { INTERFACE_CELLS as usize }> = PerCpuArray::new();

#[btf_map]
pub static GATE: Array<u64, { firewall_common::gate::CELLS as usize }, MMAPABLE> = Array::new();

/// A set of the flow table or the fragment table.
pub type SetWords = [u64; flow::SET_WORDS as usize];

#[btf_map]
pub static FLOWS: Array<SetWords, { flow::SETS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static FRAGMENTS: Array<SetWords, { fragment::SETS as usize }, MMAPABLE> = Array::new();

/// Words of a scope, see [`limit::scope`].
pub type ScopeWords = [u64; limit::scope::WORDS as usize];

#[btf_map]
pub static SCOPES: Array<ScopeWords, { limit::MAX_SCOPES as usize }, MMAPABLE> = Array::new();

/// A line of a sketch.
pub type LineWords = [u64; limit::WAYS as usize];
pub type SketchMap = Array<LineWords, 1, INNER>;

/// By scope, then table.
#[btf_map]
pub static SKETCHES: ArrayOfMaps<SketchMap, { (limit::MAX_SCOPES * limit::TABLES) as usize }> =
    ArrayOfMaps::new();

/// By image slot, then scope in the image: the scope of the kernel plus 1, 0 for none.
#[btf_map]
pub static BINDINGS: Array<u32, { (SLOTS * limit::MAX_LOCAL) as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static TALLIES: PerCpuArray<u64, { Tally::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
pub static LOCAL: HashMap<AddressKey, u32, 4096> = HashMap::new();

/// Its size is the agent's choice.
#[btf_map]
pub static BANS: HashMap<BanKey, Ban, 65536> = HashMap::new();

#[btf_map]
pub static EVENTS: RingBuf<Event, { 1 << 20 }> = RingBuf::new();

#[btf_map]
pub static SAMPLER: PerCpuArray<Sampler, { Reason::COUNT }> = PerCpuArray::new();

/// Room for what a packet's stack has none for. Not pinned: nothing in it outlives the packet.
#[repr(C)]
pub struct Room {
    pub part: Part,
    pub options: cookie::Options,
    pub answer: cookie::AnswerWords,
    pub ip: [u32; 10],
    pub tcp: [u32; 6],
    pub macs: [u16; 6],
    pub mtu: u32,
    pub offer: cookie::Offer,
    pub seq: u32,
    pub cookie: u32,
}

#[btf_map]
pub static ROOM: PerCpuArray<Room, 1> = PerCpuArray::new();

/// A [`cookie::back`] for each interface.
#[btf_map]
pub static ANSWERS: Array<u32, { INTERFACE_CELLS as usize }> = Array::new();

/// Challenges that were given lately, see [`cookie::asked`].
#[btf_map]
pub static ASKED: Array<u64, { cookie::ASKED as usize }> = Array::new();

/// By TCP port, a bit each: what comes to this port goes on to another host or port, so no listener here may answer for it.
#[btf_map]
pub static PUBLISHED: Array<u64, { cookie::PUBLISHED_WORDS as usize }> = Array::new();
