//! What a card is opened with: a driver that is new enough, and kernels that are whole.

/// The CUDA that a driver must know, as drivers tell it.
const CUDA: i32 = 13_000;
/// The first driver that does.
const DRIVER: &str = "580";
/// The first four bytes of a fat binary; then two numbers of two bytes, the second of which is the header's length, and the
/// length of the rest in eight.
const MAGIC: u32 = 0xba55_ed50;

/// Whether a driver that knows this CUDA can be used.
///
/// # Errors
/// When it is too old: both versions and what to do.
pub fn check_version(version: i32) -> Result<(), String> {
    if version >= CUDA {
        return Ok(());
    }
    let written = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    Err(format!(
        "the driver is for CUDA {} and too old for this runtime, which needs {}: install driver {DRIVER} or later on the node",
        written(version),
        written(CUDA)
    ))
}

/// Whether these bytes are a whole fat binary, of which the driver reads as much as its header says.
///
/// # Errors
/// What they are instead.
pub fn check_kernels(bytes: &[u8]) -> Result<(), String> {
    let wrong = |what: &str| {
        Err(format!(
            "the kernels are no fat binary of hack/cuda-kernels: {what}"
        ))
    };
    let Some((header, _)) = bytes.split_first_chunk::<16>() else {
        return wrong("they are shorter than its header");
    };
    let [a, b, c, d, _, _, low, high, rest @ ..] = *header;
    if u32::from_le_bytes([a, b, c, d]) != MAGIC {
        return wrong("they begin otherwise");
    }
    let header = u64::from(u16::from_le_bytes([low, high]));
    let told = header.saturating_add(u64::from_le_bytes(rest));
    if told > bytes.len() as u64 {
        let found = bytes.len();
        return wrong(&format!("{found} bytes are there of {told}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_too_old_is_told_with_both_versions() {
        assert_eq!(check_version(13_000), Ok(()));
        assert_eq!(check_version(13_020), Ok(()));
        let told = check_version(12_040).unwrap_err();
        for part in ["CUDA 12.4 ", "needs 13.0:", "driver 580"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn kernels_are_whole() {
        let mut bytes = vec![0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0, 8, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([7; 8]);
        assert_eq!(check_kernels(&bytes), Ok(()));
        for (file, told) in [
            (&bytes[..23], "23 bytes are there of 24"),
            (&bytes[..15], "shorter than its header"),
            (&b".version 8.0\n.target sm_80\n"[..], "begin otherwise"),
            (b"\x7fELF\0\0\0\0\0\0\0\0\0\0\0\0\0", "begin otherwise"),
        ] {
            let found = check_kernels(file).unwrap_err();
            assert!(found.contains(told), "{found}");
        }
        bytes[8..16].fill(0xff);
        assert!(check_kernels(&bytes).is_err());
    }
}
