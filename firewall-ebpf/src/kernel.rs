//! The decision's surroundings over maps and helpers: one value for each packet.

use crate::apart::{self, Part};
use crate::cookie;
use crate::frame::settle;
use crate::limits::{self, Given};
use crate::maps::{GATE, LOCAL, TALLIES};
use crate::sockets;
use crate::state::{self, PolicyPage, PolicyPages, config, control, policy_pages, room};
use aya_ebpf::programs::{TcContext, XdpContext};
use firewall_common::control::{AddressKey, Config, Control, Selector};
use firewall_common::counter::Tally;
use firewall_common::decide::{Kernel, Socket};
use firewall_common::flow::{Key, Left, Sends, State};
use firewall_common::fragment::Remembered;
use firewall_common::gate::{Bank, Cell};
use firewall_common::image::Image;
use firewall_common::meter::{Metered, Steps, Told, Weighed};
use firewall_common::packet::{Address, Fragment, Frame, Packet};
use firewall_common::verdict::Reason;

/// What a program was called with.
pub trait Context {
    /// The device that the packet came in on, or leaves by.
    fn ifindex(&self) -> u32;
    /// [`crate::sockets`].
    fn socket(&self, key: &Key) -> u64;
    /// [`Steps::handshake`].
    fn handshake(&self, packet: &Packet) -> Told;
    /// [`Steps::challenge`].
    fn challenge(&self, packet: &Packet, config_slot: u32) -> Told;
    /// [`firewall_common::quote::quoted`] for a frame of this kind, see [`crate::apart`].
    fn quote<F: Frame>(&self, packet: &Packet, key: &mut Key) -> u64;
}

impl Context for XdpContext {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn socket(&self, key: &Key) -> u64 {
        sockets::socket_xdp(self.ctx, key)
    }

    #[inline(always)]
    fn handshake(&self, packet: &Packet) -> Told {
        Told::handshake(cookie::handshake_xdp(self.ctx, packet))
    }

    #[inline(always)]
    fn challenge(&self, packet: &Packet, config_slot: u32) -> Told {
        Told::challenge(cookie::challenge(self.ctx, packet, config_slot))
    }

    #[inline(always)]
    fn quote<F: Frame>(&self, packet: &Packet, key: &mut Key) -> u64 {
        apart::quote_xdp(self.ctx, packet, key)
    }
}

/// XDP on kernels whose helpers do not write into frames: nothing is answered.
pub struct Silent<'a>(pub &'a XdpContext);

impl Context for Silent<'_> {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.0.ifindex()
    }

    #[inline(always)]
    fn socket(&self, key: &Key) -> u64 {
        self.0.socket(key)
    }

    #[inline(always)]
    fn handshake(&self, packet: &Packet) -> Told {
        self.0.handshake(packet)
    }

    #[inline(always)]
    fn challenge(&self, _packet: &Packet, _config_slot: u32) -> Told {
        Told::FAILED
    }

    #[inline(always)]
    fn quote<F: Frame>(&self, packet: &Packet, key: &mut Key) -> u64 {
        self.0.quote::<F>(packet, key)
    }
}

impl Context for TcContext {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: a field of the context that the program was called with.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn socket(&self, key: &Key) -> u64 {
        sockets::socket_skb(self.skb.skb, key)
    }

    #[inline(always)]
    fn handshake(&self, packet: &Packet) -> Told {
        Told::handshake(cookie::handshake_skb(self.skb.skb, packet))
    }

    #[inline(always)]
    fn challenge(&self, _packet: &Packet, _config_slot: u32) -> Told {
        // Nothing goes back from here.
        Told::FAILED
    }

    #[inline(always)]
    fn quote<F: Frame>(&self, packet: &Packet, key: &mut Key) -> u64 {
        if F::BARE {
            apart::quote_raw(self.skb.skb, packet, key)
        } else {
            apart::quote_skb(self.skb.skb, packet, key)
        }
    }
}

/// What one packet sees: the selector is read once, so image, counters and configuration are of one moment.
pub struct Node<'a, C> {
    pub ctx: &'a C,
    pub control: Option<&'static Control>,
    /// Image slot in force, for tables that are kept per slot.
    pub slot: u32,
    config: Option<&'static Config>,
    image: Option<PolicyPages>,
    config_slot: u32,
}

impl<'a, C: Context> Node<'a, C> {
    #[inline(always)]
    pub fn new(ctx: &'a C) -> Node<'a, C> {
        // SAFETY: an aligned word of a map that the agent stores atomically.
        let selector = Selector(control().map_or(0, |control| unsafe {
            (&raw const control.selector).read_volatile()
        }));
        Node::of(ctx, selector.image(), selector.config())
    }

    /// Of a packet that has its slots already.
    #[inline(always)]
    pub fn of(ctx: &'a C, slot: u32, config_slot: u32) -> Node<'a, C> {
        let control = control();
        Node {
            ctx,
            control,
            slot,
            config: config(config_slot),
            image: policy_pages(slot, control),
            config_slot,
        }
    }
}

impl<C: Context> Kernel for Node<'_, C> {
    type Pages = PolicyPages;

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        self.config
    }

    #[inline(always)]
    fn pages(&self) -> Option<&PolicyPages> {
        self.image.as_ref()
    }

    #[inline(always)]
    fn generation(&self) -> u64 {
        let control = self.control;
        control.map_or(0, |control| {
            control.generation.get(self.slot as usize).copied().unwrap_or(0)
        })
    }

    #[inline(always)]
    fn came_in(&self, key: &Key, tcp_flags: u8) -> Option<State> {
        State::from_number(apart::flow_in(key, self.config_slot, tcp_flags as u32) as u8)
    }

    #[inline(always)]
    fn went_out(&self, key: &Key, sends: Sends) -> Left {
        let left = apart::flow_out(key, self.config_slot, sends as u32, self.ctx.ifindex());
        Left::from_number(left as u8)
    }

    #[inline(always)]
    fn first_fragment(&self, key: &Key, fragment: Fragment, first: Remembered) -> Result<(), Reason> {
        let Some(room) = room() else {
            return Err(Reason::FragmentTable);
        };
        room.part = Part {
            key: *key,
            fragment,
            first,
        };
        match Reason::from_number(apart::fragment_first(&room.part) as u8) {
            None => Ok(()),
            Some(reason) => Err(reason),
        }
    }

    #[inline(always)]
    fn later_fragment(&self, key: &Key, fragment: Fragment) -> Result<Remembered, Reason> {
        let Some(room) = room() else {
            return Err(Reason::FragmentTable);
        };
        (room.part.key, room.part.fragment) = (*key, fragment);
        match Reason::from_number(apart::fragment_later(&mut room.part) as u8) {
            None => Ok(room.part.first),
            Some(reason) => Err(reason),
        }
    }

    #[inline(always)]
    fn class(&self, image: &Image<PolicyPages>, version: u8, address: Address) -> Option<u32> {
        let first = image.first().0.cast();
        match apart::class_of(first, self.slot, version as u32, address.high, address.low) {
            apart::NO_CLASS => None,
            class => Some(class as u32),
        }
    }

    #[inline(always)]
    fn quoted<F: Frame>(&self, _frame: &F, packet: &Packet) -> Option<Key> {
        let room = room()?;
        match self.ctx.quote::<F>(packet, &mut room.part.key) {
            0 => None,
            _ => Some(room.part.key),
        }
    }

    #[inline(always)]
    fn failsafe(&self, key: &Key) -> Option<u32> {
        match apart::failsafe_of(key, self.config_slot) {
            apart::NO_ENTRY => None,
            entry => Some(entry as u32),
        }
    }

    #[inline(always)]
    fn banned(&self, version: u8, source: Address) -> bool {
        let bans = self.control.map_or(0, |control| {
            // SAFETY: an aligned word of a map, written by whole words only.
            unsafe { (&raw const control.bans).read_volatile() }
        });
        bans != 0 && apart::banned_of(source.high, source.low, version as u32, self.config_slot) != 0
    }

    #[inline(always)]
    fn is_own(&self, address: AddressKey) -> bool {
        LOCAL.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn gate(&self, bank: Bank, port: u16) -> Cell {
        // SAFETY: an aligned word of a map, written by whole words only.
        Cell(
            GATE.get_ptr(bank.cell(port))
                .map_or(0, |cell| unsafe { cell.read_volatile() }),
        )
    }

    #[inline(always)]
    fn open_gate(&self, bank: Bank, port: u16, cell: Cell) {
        if let Some(word) = GATE.get_ptr_mut(bank.cell(port)) {
            // SAFETY: an aligned word of a map, written by whole words only.
            unsafe { word.write_volatile(cell.0) };
        }
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        state::now_s()
    }

    #[inline(always)]
    fn socket(&self, key: &Key) -> Socket {
        match self.ctx.socket(key) {
            1 => Socket::Accepted,
            2 => Socket::Opened,
            _ => Socket::Unknown,
        }
    }

    #[inline(always)]
    fn tally(&self, tally: Tally) {
        if let Some(cell) = TALLIES.get_ptr_mut(tally as u32) {
            // SAFETY: this CPU's own cell.
            unsafe { *cell += 1 };
        }
    }
}

impl<C: Context> Node<'_, C> {
    #[inline(always)]
    fn given(&self, told: Told) -> u32 {
        Given::new(self.slot, self.config_slot, told).0
    }
}

impl<C: Context> Steps for Node<'_, C> {
    type Page = PolicyPage;

    #[inline(always)]
    fn before(&self, what: Weighed<PolicyPage>, told: Told) -> Metered {
        Metered(limits::limits_before(
            what.packet,
            self.given(told),
            what.by.number(),
        ))
    }

    #[inline(always)]
    fn spend(&self, what: Weighed<PolicyPage>, said: Metered) -> Metered {
        let given = limits::of_image(self.slot, what.by.number());
        let first = what.first.0.cast();
        Metered(limits::limits_spend(
            first,
            what.packet,
            given,
            said.0,
            what.length,
        ))
    }

    #[inline(always)]
    fn after(&self, what: Weighed<PolicyPage>, told: Told, excess: Metered) -> Metered {
        let given = self.given(told);
        Metered(limits::limits_after(
            what.packet,
            given,
            what.by.number(),
            excess.0,
        ))
    }

    #[inline(always)]
    fn handshake(&self, packet: &Packet) -> Told {
        self.ctx.handshake(packet)
    }

    #[inline(always)]
    fn challenge(&self, packet: &Packet) -> Told {
        self.ctx.challenge(packet, self.config_slot)
    }

    #[inline(always)]
    fn ban(&self, packet: &Packet, number: u32) {
        limits::limits_ban(packet, self.given(Told::NOTHING), number);
    }

    #[inline(always)]
    fn settle<T>(&self, value: &mut T) {
        settle(value);
    }
}
