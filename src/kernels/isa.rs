//! The instruction sets of the processor, detected once at run time: the only place in the crate that detects them.
//!
//! An [`Isa`] is a value, not a global: kernels take one, so a test can run every path that this machine supports. The
//! program uses the result of [`Isa::detect`].

use std::sync::OnceLock;

/// The widest f32 vectors that a kernel may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vector {
    /// Sixteen lanes in plain Rust: in tests, a substitute for AVX-512 on machines without it.
    #[cfg(test)]
    Emulated512,
    /// Plain arrays, in the baseline instructions that the compiler chooses (SSE2, NEON).
    Portable,
    /// 256 bits with fused multiply-add and conversion of f16.
    Avx2,
    /// 512 bits: F, BW, DQ and VL.
    Avx512,
}

/// The instruction sets that a kernel may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa {
    pub vector: Vector,
    /// `vdpbf16ps`: two bf16 products per lane, added in f32. Implies [`Vector::Avx512`].
    pub avx512_bf16: bool,
    /// `tdpbf16ps` on tiles, with the operating system's permission to use them.
    pub amx_bf16: bool,
    /// `vpdpbusd` on 256 bits: four products of bytes per lane, added exactly. Implies [`Vector::Avx2`].
    pub avx_vnni: bool,
    /// The same on 512 bits. Implies [`Vector::Avx512`].
    pub avx512_vnni: bool,
}

impl Isa {
    /// No vector instructions beyond the target's baseline.
    pub const PORTABLE: Self = Self {
        vector: Vector::Portable,
        avx512_bf16: false,
        amx_bf16: false,
        avx_vnni: false,
        avx512_vnni: false,
    };

    /// Returns the instruction sets that this processor and operating system support.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(probe)
    }

    /// Returns every value that this machine can run, the simplest first, for tests of all paths.
    pub fn available() -> Vec<Self> {
        let best = Self::detect();
        let mut all = vec![Self::PORTABLE];
        #[cfg(test)]
        all.push(Self {
            vector: Vector::Emulated512,
            ..Self::PORTABLE
        });
        for vector in [Vector::Avx2, Vector::Avx512] {
            if vector <= best.vector {
                all.push(Self {
                    vector,
                    ..Self::PORTABLE
                });
            }
        }
        let without = |without: fn(&mut Self)| {
            let mut some = best;
            without(&mut some);
            some
        };
        for some in [
            without(|isa| (isa.amx_bf16, isa.avx512_vnni) = (false, false)),
            without(|isa| isa.amx_bf16 = false),
            best,
        ] {
            if !all.contains(&some) {
                all.push(some);
            }
        }
        all
    }

    /// Returns whether the processor multiplies bf16 operands directly.
    pub fn multiplies_bf16(self) -> bool {
        self.avx512_bf16 || self.amx_bf16
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.vector {
            #[cfg(test)]
            Vector::Emulated512 => "emulated avx512",
            Vector::Portable => "portable",
            Vector::Avx2 => "avx2",
            Vector::Avx512 => "avx512",
        })?;
        if self.avx512_bf16 {
            f.write_str("+avx512bf16")?;
        }
        for (has, name) in [
            (self.avx_vnni, "+avxvnni"),
            (self.avx512_vnni, "+avx512vnni"),
            (self.amx_bf16, "+amxbf16"),
        ] {
            if has {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

/// Returns the architecture and the instruction sets in use, as one line for the record of a run.
pub fn machine() -> String {
    format!("{} {}", std::env::consts::ARCH, Isa::detect())
}

#[cfg(target_arch = "x86_64")]
fn probe() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    Isa {
        vector: match (avx2, avx512) {
            (_, true) => Vector::Avx512,
            (true, false) => Vector::Avx2,
            (false, false) => Vector::Portable,
        },
        avx512_bf16: avx512 && is_x86_feature_detected!("avx512bf16"),
        amx_bf16: avx512 && amx_bf16(),
        avx_vnni: avx2 && is_x86_feature_detected!("avxvnni"),
        avx512_vnni: avx512 && is_x86_feature_detected!("avx512vnni"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn probe() -> Isa {
    Isa::PORTABLE
}

/// Returns whether the processor has AMX-BF16 and the operating system lets this process use it. Linux disables the 8
/// KiB of tile state until a process requests it; the permission then holds for all its threads.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_bf16() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // Every x86-64 processor has the `cpuid` instruction; leaf 7 exists if leaf 0 reports it.
    if __cpuid(0).eax < 7 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    if features & (AMX_BF16 | AMX_TILE) != AMX_BF16 | AMX_TILE {
        return false;
    }
    // SAFETY: a plain system call with two integers; it fails with an error code on kernels that do not support it.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_bf16() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_line_is_what_the_kernels_use() {
        let line = machine();
        let used = line.strip_prefix(std::env::consts::ARCH).unwrap().trim();
        assert_eq!(used, Isa::detect().to_string());
        let all = Isa {
            vector: Vector::Avx512,
            avx512_bf16: true,
            amx_bf16: true,
            avx_vnni: true,
            avx512_vnni: true,
        };
        assert_eq!(
            all.to_string(),
            "avx512+avx512bf16+avxvnni+avx512vnni+amxbf16"
        );
    }

    #[test]
    fn every_available_set_is_within_the_detected_one() {
        let best = Isa::detect();
        let all = Isa::available();
        assert!(all.contains(&Isa::PORTABLE) && all.contains(&best));
        for isa in all {
            assert!(isa.vector <= best.vector);
            assert!(!isa.multiplies_bf16() || isa.vector == Vector::Avx512);
            assert!(!isa.avx512_vnni || isa.vector == Vector::Avx512);
            assert!(!isa.avx_vnni || isa.vector >= Vector::Avx2);
        }
    }
}
