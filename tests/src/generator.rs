//! A generator of packets that all differ: a small XDP program that writes the next packet into the frame and then
//! redirects it into an interface, or runs another program on it.
//!
//! Source, source port, sequence number and fragment identification follow from a counter, so a run can be repeated, and
//! the number sent is known to the last packet. Checksums are right: a network stack takes these packets.

use crate::bpf::{
    EXIT, Insn, LEAVE, call, insn, leave_at_end, load, load_map, look_up, map, mov, mov_imm, update,
};
use crate::kernel::flood;
use crate::netns::Namespace;
use crate::rotate::End;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What differs from packet to packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vary {
    /// So many sources from that of the frame on: the last word of an IPv4 address, the second one of an IPv6 address (so
    /// each is a /64 of its own). 0 and 1: the one of the frame.
    pub sources: u32,
    /// Source ports from 1024 on.
    pub ports: bool,
    /// TCP: sequence and acknowledgement number.
    pub sequence: bool,
    /// Identification of a fragment.
    pub fragment: bool,
}

/// The program, with its counter.
#[derive(Debug)]
pub struct Generator {
    program: OwnedFd,
    counter: OwnedFd,
    begun_at: u64,
    _programs: OwnedFd,
    frame: Vec<u8>,
}

impl Generator {
    /// For an Ethernet frame without VLAN tags, of TCP or UDP without IP options, or a first fragment of it. The counter
    /// begins at `number`: generators that share the work begin apart.
    ///
    /// # Errors
    /// The kernel refuses a map or the program.
    pub fn new(frame: &[u8], vary: Vary, number: u64, end: &End) -> Result<Generator> {
        let counter = map(2, 4, 8, 1)?;
        let programs = map(3, 4, 4, 1)?;
        update(&counter, 0, &number.to_ne_bytes())?;
        let program = load(&code(&Layout::of(frame)?, frame, vary, &counter, &programs, end))?;
        if let End::Program(next) = end {
            update(&programs, 0, &next.as_raw_fd().to_ne_bytes())?;
        }
        Ok(Generator {
            program,
            counter,
            begun_at: number,
            _programs: programs,
            frame: match end {
                End::Program(_) => frame.to_vec(),
                End::Redirect(_) => [frame, &[0; SPARE]].concat(),
            },
        })
    }

    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// A frame to start from: its content is overwritten.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Packets made so far.
    ///
    /// # Errors
    /// The kernel refuses to read the counter.
    pub fn sent(&self) -> Result<u64> {
        Ok(look_up(&self.counter, 0)?.wrapping_sub(self.begun_at))
    }
}

/// Offsets in a frame.
#[derive(Clone, Copy, Debug)]
struct Layout {
    ipv6: bool,
    protocol: u8,
    /// Of the fragment's identification.
    fragment: Option<usize>,
    transport: usize,
}

const NETWORK: usize = 14;
/// Behind a frame that is redirected.
const SPARE: usize = 4;
/// `bpf_xdp_adjust_tail`
const ADJUST_TAIL: i32 = 65;
const TCP: u8 = 6;

impl Layout {
    fn of(frame: &[u8]) -> Result<Layout> {
        let ipv6 = frame.get(12..14) == Some(&[0x86, 0xdd]);
        let layout = if ipv6 {
            let next = frame.get(NETWORK + 6).copied().context("a short frame")?;
            let fragment = next == 44;
            Layout {
                ipv6,
                protocol: if fragment { frame[NETWORK + 40] } else { next },
                fragment: fragment.then_some(NETWORK + 44),
                transport: NETWORK + if fragment { 48 } else { 40 },
            }
        } else {
            let flags = frame.get(NETWORK + 6).copied().context("a short frame")?;
            Layout {
                ipv6,
                protocol: frame[NETWORK + 9],
                fragment: (flags & 0x20 != 0).then_some(NETWORK + 4),
                transport: NETWORK + 20,
            }
        };
        ensure!(frame.len() >= layout.transport + 20, "a short frame");
        Ok(layout)
    }

    /// Of the word of the source that varies.
    fn source(self) -> usize {
        NETWORK + 12
    }
}

/// Instructions; sizes are those of `BPF_ST` and `BPF_STX` with `BPF_MEM`.
mod code {
    pub const ADD: u8 = 0x07;
    pub const ADD_REGISTER: u8 = 0x0f;
    pub const SUBTRACT_REGISTER: u8 = 0x1f;
    pub const MULTIPLY_REGISTER: u8 = 0x2f;
    pub const OR: u8 = 0x47;
    pub const AND: u8 = 0x57;
    pub const SHIFT_RIGHT: u8 = 0x77;
    pub const MODULO: u8 = 0x97;
    pub const XOR: u8 = 0xa7;
    pub const MOVE_32: u8 = 0xb4;
    pub const TO_BIG_ENDIAN: u8 = 0xdc;
    pub const LOAD: u8 = 0x61;
    pub const LOAD_DOUBLE: u8 = 0x79;
    pub const STORE: u8 = 0x63;
    pub const STORE_HALF: u8 = 0x6b;
    pub const STORE_DOUBLE: u8 = 0x7b;
    pub const STORE_VALUE: u8 = 0x62;
    pub const STORE_HALF_VALUE: u8 = 0x6a;
    pub const STORE_BYTE_VALUE: u8 = 0x72;
    pub const IF_EQUAL: u8 = 0x15;
    pub const IF_NOT_EQUAL: u8 = 0x55;
    pub const IF_GREATER_REGISTER: u8 = 0x2d;
}

fn code(
    layout: &Layout,
    frame: &[u8],
    vary: Vary,
    counter: &OwnedFd,
    programs: &OwnedFd,
    end: &End,
) -> Vec<Insn> {
    use code::*;
    let (source, transport) = (layout.source(), layout.transport);
    // What is stored in place of the frame's: without what varies, and without checksums over that.
    let mut base = frame.to_vec();
    let word = [base[source], base[source + 1], base[source + 2], base[source + 3]];
    base[source..source + 4].fill(0);
    if vary.ports {
        base[transport..transport + 2].fill(0);
    }
    if vary.sequence {
        base[transport + 4..transport + 12].fill(0);
    }
    if let (true, Some(at)) = (vary.fragment, layout.fragment) {
        base[at..at + if layout.ipv6 { 4 } else { 2 }].fill(0);
    }
    let sum_at = transport + if layout.protocol == TCP { 16 } else { 6 };
    // A fragment's checksum is none of its own.
    let summed = layout.fragment.is_none();
    if summed {
        base[sum_at..sum_at + 2].fill(0);
    }
    if !layout.ipv6 {
        base[NETWORK + 10..NETWORK + 12].fill(0);
    }

    // 6: context, 7: data, 8: its end, 9: the number of this packet.
    let mut code = vec![mov(6, 1), insn(LOAD, 7, 6, 0, 0), insn(LOAD, 8, 6, 4, 0)];
    if let End::Program(_) = end {
        // As long as it was: the program behind may have answered in it.
        code.extend([
            mov(3, 8),
            insn(SUBTRACT_REGISTER, 3, 7, 0, 0),
            mov_imm(2, frame.len() as i32),
            insn(SUBTRACT_REGISTER, 2, 3, 0, 0),
            insn(IF_EQUAL, 2, 0, 2, 0),
            mov(1, 6),
            call(ADJUST_TAIL),
            insn(LOAD, 7, 6, 0, 0),
            insn(LOAD, 8, 6, 4, 0),
        ]);
    }
    code.extend([
        mov(2, 7),
        insn(ADD, 2, 0, 0, frame.len() as i32),
        insn(IF_GREATER_REGISTER, 2, 8, LEAVE, 0),
    ]);
    code.extend([
        insn(STORE_VALUE, 10, 0, -4, 0),
        mov(2, 10),
        insn(ADD, 2, 0, 0, -4),
    ]);
    code.extend(load_map(1, counter));
    code.extend([call(1), insn(IF_EQUAL, 0, 0, LEAVE, 0)]);
    code.extend([
        insn(LOAD_DOUBLE, 9, 0, 0, 0),
        mov(1, 9),
        insn(ADD, 1, 0, 0, 1),
        insn(STORE_DOUBLE, 0, 1, 0, 0),
    ]);
    // The whole frame anew: what it was sent to may have written to the page that comes back.
    for (index, bytes) in base.chunks(4).enumerate() {
        let at = (index * 4) as i16;
        match *bytes {
            [a, b, c, d] => code.push(insn(STORE_VALUE, 7, 0, at, i32::from_ne_bytes([a, b, c, d]))),
            _ => {
                let mut rest = bytes.iter().zip(at..);
                if let [a, b, ..] = *bytes {
                    code.push(insn(
                        STORE_HALF_VALUE,
                        7,
                        0,
                        at,
                        i32::from(i16::from_ne_bytes([a, b])),
                    ));
                    rest.nth(1);
                }
                code.extend(rest.map(|(byte, at)| insn(STORE_BYTE_VALUE, 7, 0, at, i32::from(*byte))));
            }
        }
    }
    // 1: the word of the source as on the wire, then the sum of its halves.
    code.push(mov(1, 9));
    match vary.sources {
        0 | 1 => code.push(mov_imm(1, 0)),
        many if many.is_power_of_two() => code.push(insn(AND, 1, 0, 0, (many - 1).cast_signed())),
        many => code.push(insn(MODULO, 1, 0, 0, many.cast_signed())),
    }
    code.extend([
        insn(MOVE_32, 2, 0, 0, i32::from_be_bytes(word)),
        insn(ADD_REGISTER, 1, 2, 0, 0),
        insn(TO_BIG_ENDIAN, 1, 0, 0, 32),
        insn(STORE, 7, 1, source as i16, 0),
    ]);
    code.extend([
        mov(2, 1),
        insn(AND, 2, 0, 0, 0xffff),
        insn(SHIFT_RIGHT, 1, 0, 0, 16),
    ]);
    code.push(insn(ADD_REGISTER, 1, 2, 0, 0));
    // 4: bits that look random; 5: the sum of what varies in the transport header; 3: of what varies in the fragment's.
    code.extend([
        insn(0x18, 4, 0, 0, 0x7f4a_7c15),
        insn(0, 0, 0, 0, 0x9e37_79b9_u32.cast_signed()),
    ]);
    code.extend([insn(MULTIPLY_REGISTER, 4, 9, 0, 0), mov_imm(5, 0), mov_imm(3, 0)]);
    if vary.ports {
        code.extend([mov(2, 4), insn(SHIFT_RIGHT, 2, 0, 0, 48), insn(OR, 2, 0, 0, 4)]);
        code.extend([
            insn(STORE_HALF, 7, 2, transport as i16, 0),
            insn(ADD_REGISTER, 5, 2, 0, 0),
        ]);
    }
    if vary.sequence {
        code.extend([mov(2, 4), insn(SHIFT_RIGHT, 2, 0, 0, 24)]);
        for at in [4, 8] {
            code.push(insn(STORE, 7, 2, transport as i16 + at, 0));
        }
        code.extend([
            mov(0, 2),
            insn(AND, 0, 0, 0, 0xffff),
            insn(SHIFT_RIGHT, 2, 0, 0, 16),
            insn(AND, 2, 0, 0, 0xffff),
        ]);
        for _ in 0..2 {
            code.extend([insn(ADD_REGISTER, 5, 0, 0, 0), insn(ADD_REGISTER, 5, 2, 0, 0)]);
        }
    }
    if let (true, Some(at)) = (vary.fragment, layout.fragment) {
        code.push(insn(
            if layout.ipv6 { STORE } else { STORE_HALF },
            7,
            9,
            at as i16,
            0,
        ));
        code.extend([mov(3, 9), insn(AND, 3, 0, 0, 0xffff)]);
    }
    if !layout.ipv6 {
        code.push(insn(ADD_REGISTER, 3, 1, 0, 0));
        store_checksum(&mut code, 3, halves(&base[NETWORK..NETWORK + 20]), NETWORK + 10);
    }
    if summed {
        let addresses = if layout.ipv6 {
            NETWORK + 8..NETWORK + 40
        } else {
            NETWORK + 12..NETWORK + 20
        };
        let length = (base.len() - transport) as u16;
        let constant = halves(&base[addresses])
            + halves(&base[transport..])
            + u32::from(length.to_be())
            + u32::from(u16::from(layout.protocol).to_be());
        code.push(insn(ADD_REGISTER, 5, 1, 0, 0));
        store_checksum(&mut code, 5, constant, sum_at);
    }
    match end {
        End::Program(_) => {
            code.push(mov(1, 6));
            code.extend(load_map(2, programs));
            code.extend([mov_imm(3, 0), call(12)]);
        }
        End::Redirect(ifindex) => code.extend([
            // Shorter by the spare bytes: a frame that comes back has the length of what was sent back in it, and the
            // kernel sets that right only for who changes it.
            mov(1, 6),
            mov_imm(2, -(SPARE as i32)),
            call(ADJUST_TAIL),
            mov_imm(1, ifindex.cast_signed()),
            mov_imm(2, 0),
            call(23),
            EXIT,
        ]),
    }
    leave_at_end(&mut code);
    code
}

/// Folds the sum in a register and stores its complement (RFC 1071).
fn store_checksum(code: &mut Vec<Insn>, register: u8, constant: u32, at: usize) {
    use code::*;
    code.push(insn(ADD, register, 0, 0, constant.cast_signed()));
    for _ in 0..2 {
        code.extend([
            mov(2, register),
            insn(SHIFT_RIGHT, 2, 0, 0, 16),
            insn(AND, register, 0, 0, 0xffff),
            insn(ADD_REGISTER, register, 2, 0, 0),
        ]);
    }
    code.extend([
        insn(XOR, register, 0, 0, 0xffff),
        // Of UDP, zero says that there is none.
        insn(IF_NOT_EQUAL, register, 0, 1, 0),
        mov_imm(register, 0xffff),
        insn(STORE_HALF, 7, register, at as i16, 0),
    ]);
}

/// The sum of the half words as they lie in memory.
fn halves(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum()
}

/// Generators at work, each on a processor of its own as long as there are any, until this is stopped or dropped.
#[derive(Debug)]
pub struct Attack {
    generators: Arc<Vec<Generator>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Attack {
    /// Starts in the namespace whose interface the generators redirect to.
    ///
    /// # Errors
    /// The signal that ends a run cannot be handled.
    pub fn start(namespace: &Namespace, generators: Vec<Generator>) -> Result<Attack> {
        // So that it ends the call in the kernel and nothing else.
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing at all.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.context("handling SIGUSR1")?;
        let generators = Arc::new(generators);
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..generators.len())
            .map(|index| {
                let (generators, stop) = (Arc::clone(&generators), Arc::clone(&stop));
                namespace.spawn(move || run(&generators[index], index, &stop))
            })
            .collect();
        Ok(Attack {
            generators,
            stop,
            threads,
        })
    }

    /// Packets made so far.
    ///
    /// # Errors
    /// The kernel refuses to read a counter.
    pub fn sent(&self) -> Result<u64> {
        self.generators.iter().map(Generator::sent).sum()
    }

    /// Ends it, and gives how many packets were made.
    ///
    /// # Errors
    /// A generator failed.
    pub fn stop(mut self) -> Result<u64> {
        self.end()?;
        self.sent()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Again and again: a signal that comes just before the call does not end it.
            while !thread.is_finished() {
                // SAFETY: the thread was not joined yet, so its handle is valid; the handler is installed.
                unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
                std::thread::sleep(Duration::from_millis(1));
            }
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a generator panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

extern "C" fn nothing(_: libc::c_int) {}

fn run(generator: &Generator, index: usize, stop: &AtomicBool) -> Result<()> {
    /// In a call: a minute or more.
    const FRAMES: u32 = 1 << 28;
    pin_to(index % std::thread::available_parallelism()?.get())?;
    while !stop.load(Ordering::Relaxed) {
        match flood(generator.program(), generator.frame(), FRAMES) {
            Ok(()) => {}
            Err(error) if was_interrupted(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn was_interrupted(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::Interrupted)
}

/// Keeps the calling thread on one processor.
///
/// # Errors
/// There is no such processor.
pub fn pin_to(processor: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(processor).context("a processor's number")?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).context("staying on a processor")
}
