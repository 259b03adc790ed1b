//! Values packed by position, as `struct` of Redis's Lua reads and writes them: numbers in little-endian order, texts ended by
//! a zero byte.

/// What could not be read: names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub(super) struct Unreadable {
    pub(super) field: &'static str,
    pub(super) problem: &'static str,
}

/// Largest number of six bytes.
const MAX_48: u64 = (1 << 48) - 1;

/// Appends values.
#[derive(Debug, Default)]
pub(super) struct Packer(Vec<u8>);

impl Packer {
    pub(super) fn with_capacity(n: usize) -> Self {
        Self(Vec::with_capacity(n))
    }

    pub(super) fn byte(&mut self, n: u8) -> &mut Self {
        self.0.push(n);
        self
    }

    /// What `write` adds, with its length (four bytes) before it.
    pub(super) fn block(&mut self, write: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.0.len();
        self.u32(0);
        write(self);
        let length = u32::try_from(self.0.len() - at - 4).unwrap_or(u32::MAX);
        if let Some(place) = self.0.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        self
    }

    pub(super) fn u16(&mut self, n: u16) -> &mut Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }

    pub(super) fn u32(&mut self, n: u32) -> &mut Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }

    /// Six bytes, enough for milliseconds of nine thousand years; larger numbers become the largest.
    pub(super) fn u48(&mut self, n: u64) -> &mut Self {
        let [a, b, c, d, e, f, ..] = n.min(MAX_48 / 4).to_le_bytes();
        self.0.extend_from_slice(&[a, b, c, d, e, f]);
        self
    }

    /// A text ends at a zero byte. None of ours has one (names by their alphabets, JSON by its escapes); should one come from
    /// outside, what follows it is left out, and the values after it keep their places.
    pub(super) fn text(&mut self, s: &str) -> &mut Self {
        let bytes = s.as_bytes();
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        self.0.extend_from_slice(bytes.get(..end).unwrap_or_default());
        self.0.push(0);
        self
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads values in turn.
#[derive(Debug)]
pub(super) struct Unpacker<'a>(&'a [u8]);

impl<'a> Unpacker<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Unreadable> {
        let (head, rest) =
            self.0.split_first_chunk::<N>().ok_or(Unreadable { field, problem: "it is cut off" })?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn byte(&mut self, field: &'static str) -> Result<u8, Unreadable> {
        self.take::<1>(field).map(|[b]| b)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, Unreadable> {
        self.take(field).map(u32::from_le_bytes)
    }

    pub(super) fn u48(&mut self, field: &'static str) -> Result<u64, Unreadable> {
        self.take::<6>(field).map(|[a, b, c, d, e, f]| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    pub(super) fn text(&mut self, field: &'static str) -> Result<&'a str, Unreadable> {
        let end =
            self.0.iter().position(|b| *b == 0).ok_or(Unreadable { field, problem: "it is cut off" })?;
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        std::str::from_utf8(text).map_err(|_| Unreadable { field, problem: "it is not UTF-8" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_read_back_and_what_is_cut_off_names_its_field() {
        let mut p = Packer::default();
        p.byte(7).u32(70_000).u48(1_795_261_790_558).text("größe").text("").text("a\0b").u48(u64::MAX);
        let bytes = p.into_bytes();
        let mut u = Unpacker::new(&bytes);
        assert_eq!((u.byte("a"), u.u32("b"), u.u48("c")), (Ok(7), Ok(70_000), Ok(1_795_261_790_558)));
        assert_eq!((u.text("d"), u.text("e"), u.text("f")), (Ok("größe"), Ok(""), Ok("a")));
        assert!(u.u48("g").unwrap() > 1 << 45 && u.is_empty());
        assert_eq!(u.text("h").unwrap_err().to_string(), "h: it is cut off");
        assert_eq!(u.u32("i").unwrap_err().field, "i");
    }
}
