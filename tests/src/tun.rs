//! A TUN or TAP device whose other side is the test: what it writes comes in by the device, what leaves by the device
//! it reads.

use crate::netns::Namespace;
use crate::wait::PATIENCE;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

/// What stands before each frame: `struct virtio_net_hdr`.
const OFFLOAD: usize = 10;

/// The other side of the device, which goes when this is dropped.
#[derive(Debug)]
pub struct Tun(File);

/// Without (TUN) or with (TAP) Ethernet headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tun,
    Tap,
}

impl Tun {
    /// Makes a device in a namespace and sets it up.
    ///
    /// # Errors
    /// The kernel has no such devices.
    pub fn new(namespace: &Namespace, name: &str, kind: Kind) -> Result<Tun> {
        const IFF_TUN: u16 = 1;
        const IFF_TAP: u16 = 2;
        const IFF_NO_PI: u16 = 0x1000;
        const IFF_VNET_HDR: u16 = 0x4000;
        const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
        /// `struct ifreq`.
        #[repr(C)]
        struct Request {
            name: [u8; 16],
            flags: u16,
            pad: [u8; 22],
        }
        ensure!(name.len() < 16, "a name of up to 15 characters");
        let kind = match kind {
            Kind::Tun => IFF_TUN,
            Kind::Tap => IFF_TAP,
        };
        let mut request = Request {
            name: [0; 16],
            flags: kind | IFF_NO_PI | IFF_VNET_HDR,
            pad: [0; 22],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        let file = namespace.run(|| -> Result<File> {
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .context("opening /dev/net/tun")?;
            // SAFETY: the request is a `struct ifreq` that outlives the call.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
            ensure!(result == 0, "making {name}: {}", std::io::Error::last_os_error());
            Ok(file)
        })?;
        namespace.ip(&format!("link set {name} up"))?;
        Ok(Tun(file))
    }

    /// A frame comes in.
    ///
    /// # Errors
    /// The device is down.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.send_scattered(frame, 0)
    }

    /// A frame comes in of which only the first `linear` bytes are in one piece; the rest is in pages, if it is longer
    /// than one.
    ///
    /// # Errors
    /// The device is down.
    pub fn send_scattered(&self, frame: &[u8], linear: u16) -> Result<()> {
        let mut bytes = vec![0; OFFLOAD];
        bytes[2..4].copy_from_slice(&linear.to_ne_bytes());
        bytes.extend(frame);
        let written = (&self.0).write(&bytes).context("writing to the device")?;
        ensure!(written == bytes.len(), "{written} of {} bytes", bytes.len());
        Ok(())
    }

    /// The next frame that leaves and that is wanted.
    ///
    /// # Errors
    /// None in time.
    pub fn receive(&self, mut wanted: impl FnMut(&[u8]) -> bool) -> Result<Vec<u8>> {
        let start = Instant::now();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match (&self.0).read(&mut buffer) {
                Ok(length) if length > OFFLOAD && wanted(&buffer[OFFLOAD..length]) => {
                    return Ok(buffer[OFFLOAD..length].to_vec());
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ensure!(
                        start.elapsed() < PATIENCE,
                        "nothing of the kind leaves by the device"
                    );
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error).context("reading from the device"),
            }
        }
    }
}
