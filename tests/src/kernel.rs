//! The loaded programs without a wire: frames go in by BPF_PROG_TEST_RUN, verdicts and counters come out.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use firewall_common::LAYOUT_VERSION;
use firewall_common::counter::Counter;
use firewall_common::gate::{Bank, Cell};
use firewall_common::verdict::Verdict;
use ravelin::datapath::limits::Sizes;
use ravelin::datapath::{Datapath, EndingCounters, NodeConfig, Options, Way, detach_all};
use ravelin::policy::compile::{Compiled, compile};
use ravelin::policy::model::Policy;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A data path of its own, with pins that go when it goes.
pub struct Kernel {
    pub datapath: Datapath,
    pins: PathBuf,
    generation: u64,
    /// What the policy before counted to its end.
    pub retired: Option<EndingCounters>,
}

/// What one frame added to the counters: (ending, would have dropped, packets, bytes).
pub type Counted = Vec<(u32, bool, u64, u64)>;

impl Kernel {
    /// # Errors
    /// Loading failed; needs root.
    pub fn new() -> Result<Kernel> {
        // A small table, so that tests can compare the whole of it.
        Kernel::with_flows(512)
    }

    /// [`Kernel::new`] with room for so many flows.
    ///
    /// # Errors
    /// As there.
    pub fn with_flows(flows: u32) -> Result<Kernel> {
        Kernel::with(Options {
            flows,
            ..Options::default()
        })
    }

    /// [`Kernel::new`] with room for what limits remember.
    ///
    /// # Errors
    /// As there.
    pub fn with_limits(limits: Sizes) -> Result<Kernel> {
        Kernel::with(Options {
            flows: 512,
            limits,
            ..Options::default()
        })
    }

    fn with(options: Options) -> Result<Kernel> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "test-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let pins = Path::new("/sys/fs/bpf/ravelin").join(name);
        let mut datapath = Datapath::open_with(&pins, options)?;
        datapath.configure(&NodeConfig::default())?;
        Ok(Kernel {
            datapath,
            pins,
            generation: 0,
            retired: None,
        })
    }

    /// Puts a policy in force.
    ///
    /// # Errors
    /// It does not compile or the kernel refuses it.
    pub fn enforce(&mut self, policy: &Policy) -> Result<Compiled> {
        let compiled = compile(policy)?;
        self.generation += 1;
        self.retired = self.datapath.switch(&compiled, self.generation)?;
        Ok(compiled)
    }

    /// Of the policy in force.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Runs the ingress program on a frame of 14 bytes or more.
    ///
    /// # Errors
    /// The kernel refuses the run, or the program returns neither pass nor drop.
    pub fn judge(&self, frame: &[u8]) -> Result<(Verdict, Counted)> {
        let (action, counted) = self.run(self.datapath.ingress_program(), frame)?;
        match action {
            1 => Ok((Verdict::Drop, counted)),
            2 => Ok((Verdict::Pass, counted)),
            other => anyhow::bail!("the program returned XDP action {other}"),
        }
    }

    /// Runs the egress program on a frame of 14 bytes or more.
    ///
    /// # Errors
    /// The kernel refuses the run, or the program returns neither pass nor drop.
    pub fn judge_egress(&self, frame: &[u8]) -> Result<(Verdict, Counted)> {
        at_tc(self.run(self.datapath.egress_program(), frame)?)
    }

    /// Runs the ingress program of TC, or that for devices without Ethernet headers, on a frame of 14 bytes or more;
    /// the latter judges what stands behind the Ethernet header.
    ///
    /// # Errors
    /// As [`Kernel::judge`].
    pub fn judge_at_tc(&mut self, way: Way, frame: &[u8]) -> Result<(Verdict, Counted)> {
        let [program, _] = self.datapath.programs(way)?;
        let program = program.try_clone_to_owned()?;
        at_tc(self.run(program.as_fd(), frame)?)
    }

    fn run(&self, program: BorrowedFd, frame: &[u8]) -> Result<(u32, Counted)> {
        let before = self.datapath.counters()?;
        let (action, _) = test_run(program, frame, 1)?;
        let after = self.datapath.counters()?;
        ensure!(
            before.generation == after.generation,
            "the generation changed during the run"
        );
        let mut counted = Vec::new();
        for (ending, (before, after)) in before.endings.iter().zip(&after.endings).enumerate() {
            for (would_drop, before, after) in [
                (false, before.happened, after.happened),
                (true, before.would_drop, after.would_drop),
            ] {
                if before != after {
                    let Counter { packets, bytes } = before;
                    counted.push((
                        ending as u32,
                        would_drop,
                        after.packets - packets,
                        after.bytes - bytes,
                    ));
                }
            }
        }
        Ok((action, counted))
    }

    /// Writes a cell of the gate as egress would.
    ///
    /// # Errors
    /// The pinned map cannot be opened.
    pub fn open_gate(&self, bank: Bank, port: u16, cell: Cell) -> Result<()> {
        let path = self.pins.join(format!("v{LAYOUT_VERSION}/GATE"));
        let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut gate: Array<MapData, u64> = Map::Array(map).try_into()?;
        gate.set(bank.cell(port), cell.0, 0)?;
        Ok(())
    }

    /// Writes a word of a scope: of the first one that was ever bound, 0, and so on.
    ///
    /// # Errors
    /// The pinned map cannot be opened.
    pub fn set_scope_word(&self, scope: u32, word: u32, value: u64) -> Result<()> {
        let path = self.pins.join(format!("v{LAYOUT_VERSION}/SCOPES"));
        let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut scopes: Array<MapData, [u64; 16]> = Map::Array(map).try_into()?;
        let mut words = scopes.get(&scope, 0)?;
        words[word as usize] = value;
        scopes.set(scope, words, 0)?;
        Ok(())
    }

    /// The key of the tables' hashes.
    ///
    /// # Errors
    /// The pinned map cannot be opened.
    pub fn seed(&self) -> Result<u64> {
        let path = self.pins.join(format!("v{LAYOUT_VERSION}/CONTROL"));
        let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        const WORDS: usize = size_of::<firewall_common::control::Control>() / 8;
        let control: Array<MapData, [u64; WORDS]> = Map::Array(map).try_into()?;
        let words = control.get(&0, 0)?;
        Ok(words[std::mem::offset_of!(firewall_common::control::Control, seed) / 8])
    }
}

fn at_tc((action, counted): (u32, Counted)) -> Result<(Verdict, Counted)> {
    const TC_ACT_UNSPEC: u32 = u32::MAX;
    const TC_ACT_SHOT: u32 = 2;
    match action {
        TC_ACT_SHOT => Ok((Verdict::Drop, counted)),
        TC_ACT_UNSPEC => Ok((Verdict::Pass, counted)),
        other => anyhow::bail!("the program returned TC action {other}"),
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = detach_all(&self.pins);
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}

/// Seconds of the clock that the programs read.
pub fn monotonic_s() -> u32 {
    (monotonic_ns() / 1_000_000_000) as u32
}

/// The same in nanoseconds: that of the last tick.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the struct it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// BPF_PROG_TEST_RUN, `repeat` times: the last return value and the mean duration in nanoseconds.
///
/// # Errors
/// The kernel refuses the run (frames below 14 bytes, among others).
pub fn test_run(program: BorrowedFd, frame: &[u8], repeat: u32) -> Result<(u32, u32)> {
    run(program, frame, repeat, 0)
}

/// BPF_PROG_TEST_RUN with live frames (kernel 5.18): what the program passes or redirects really goes there.
///
/// # Errors
/// The kernel refuses the run.
pub fn flood(program: BorrowedFd, frame: &[u8], frames: u32) -> Result<()> {
    const LIVE_FRAMES: u32 = 1 << 1;
    run(program, frame, frames, LIVE_FRAMES).map(|_| ())
}

/// Attaches a program in native mode for as long as the descriptor lives, in this network namespace.
///
/// # Errors
/// The kernel refuses it.
pub fn attach_xdp(program: BorrowedFd, ifindex: u32) -> Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_int = 28;
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 4;
    let attr = [
        program.as_raw_fd() as u32,
        ifindex,
        BPF_XDP,
        XDP_FLAGS_DRV_MODE,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: the attribute is of the size given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, attr.as_ptr(), size_of_val(&attr)) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("attaching a program");
    }
    // SAFETY: bpf() just returned it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

fn run(program: BorrowedFd, frame: &[u8], repeat: u32, flags: u32) -> Result<(u32, u32)> {
    /// `union bpf_attr`, the part for `BPF_PROG_TEST_RUN` (include/uapi/linux/bpf.h).
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        pad: u32,
    }
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    // SAFETY: plain integers, for which zero is a value.
    let mut attr: Attr = unsafe { zeroed() };
    attr.prog_fd = program.as_raw_fd() as u32;
    attr.data_in = frame.as_ptr() as u64;
    attr.data_size_in = frame.len() as u32;
    attr.repeat = repeat;
    attr.flags = flags;
    // SAFETY: the attribute is of the size given, and points to a frame that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<Attr>()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("running the program on {} bytes", frame.len()));
    }
    Ok((attr.retval, attr.duration))
}

/// Takes a pinned link off its interface, as `bpftool link detach pinned PATH` does.
///
/// # Errors
/// There is no such pin, or the kernel refuses.
pub fn detach_link(pin: &Path) -> Result<()> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    let name = std::ffi::CString::new(pin.as_os_str().as_encoded_bytes())?;
    let get = [name.as_ptr() as u64, 0];
    // SAFETY: the attribute is of the size given, and points to a name that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, get.as_ptr(), size_of_val(&get)) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("opening {}", pin.display()));
    }
    // SAFETY: bpf() just returned it.
    let link = unsafe { OwnedFd::from_raw_fd(result as i32) };
    let detach = [link.as_raw_fd() as u32];
    // SAFETY: the attribute is of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_DETACH,
            detach.as_ptr(),
            size_of_val(&detach),
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("detaching {}", pin.display()));
    }
    Ok(())
}
