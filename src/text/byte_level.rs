//! The GPT-2 byte alphabet: one printable character for each byte.

/// Returns the byte that a character of the alphabet stands for.
///
/// Printable Latin-1 bytes stand for themselves; the other 68 are numbered from U+0100 in byte order.
pub(super) fn byte_of(c: char) -> Option<u8> {
    let byte = match c as u32 {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn it_is_the_alphabet_of_tokenizers() {
        let alphabet = ByteLevel::alphabet();
        let bytes: HashSet<u8> = alphabet.iter().filter_map(|&c| byte_of(c)).collect();
        assert_eq!((alphabet.len(), bytes.len()), (256, 256));
        let outside = (0..0x400)
            .filter_map(char::from_u32)
            .filter(|c| !alphabet.contains(c));
        assert!(outside.into_iter().all(|c| byte_of(c).is_none()));
        assert_eq!(
            [byte_of('Ġ'), byte_of('Ċ'), byte_of('a'), byte_of('Ń')],
            [Some(b' '), Some(b'\n'), Some(b'a'), Some(0xAD)]
        );
    }
}
