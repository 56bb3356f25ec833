//! The kernel programs as built by the build script.

/// Alignment that an ELF parser expects of a file.
#[repr(C, align(32))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("RAVELIN_OBJECT")));

/// The ELF object with the programs `ingress`, `ingress_nofrags` and `egress`.
pub static OBJECT: &[u8] = &ALIGNED.0;
