//! Repairs the frames that carry a producer's text (AMQP 0-9-1, section 4.2): `basic.deliver` and `basic.get-ok`
//! with their routing keys, content headers with their properties.
//!
//! Two repairs, neither of which changes a length: a byte of a short string that is not UTF-8 becomes `?`, and a
//! table or list nested deeper than [`DEEPEST`] becomes an opaque byte array. What has another form than the
//! specification says is left as it is; lapin then says so.

/// Largest frame that is looked at, in bytes. RabbitMQ's `frame_max` is 128 KiB by default; what is larger passes.
pub const LARGEST: usize = 1024 * 1024;
/// Tables in tables, and lists in lists, beyond which nobody looks.
const DEEPEST: usize = 16;

/// Type, channel and size of a frame.
const FRAME_HEAD: usize = 7;
const FRAME_END: usize = 1;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BASIC: u16 = 60;
const DELIVER: u16 = 60;
const GET_OK: u16 = 71;

/// Follows a stream of frames.
#[derive(Debug, Default)]
pub struct Cleaner {
    /// Bytes of the present frame that pass without a look.
    passing: usize,
}

impl Cleaner {
    /// Cleans the whole frames at the start of `bytes`, which nobody has read yet, and says how many bytes may be
    /// read now. What is left after them has to be shown again, together with what follows.
    pub fn clean(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        loop {
            let passed = self.passing.min(bytes.len() - at);
            self.passing -= passed;
            at += passed;
            let rest = &mut bytes[at..];
            let &mut [kind, _, _, a, b, c, d, ..] = rest else { return at };
            let size = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            let whole = size.saturating_add(FRAME_HEAD + FRAME_END);
            if !matches!(kind, METHOD | HEADER) || whole > LARGEST {
                self.passing = whole;
                continue;
            }
            if rest.len() < whole {
                return at;
            }
            let payload = Payload(&mut rest[FRAME_HEAD..FRAME_HEAD + size]);
            // `None`: of another form.
            let _ = if kind == METHOD { clean_method(payload) } else { clean_header(payload) };
            at += whole;
        }
    }
}

fn clean_method(mut payload: Payload<'_>) -> Option<()> {
    match (payload.short()?, payload.short()?) {
        (BASIC, DELIVER) => {
            // Consumer tag, delivery tag, redelivered, exchange, routing key.
            payload.short_string()?;
            payload.skip(8 + 1)?;
            payload.short_string()?;
            payload.short_string()
        }
        (BASIC, GET_OK) => {
            // Delivery tag, redelivered, exchange, routing key, messages left.
            payload.skip(8 + 1)?;
            payload.short_string()?;
            payload.short_string()
        }
        _ => Some(()),
    }
}

fn clean_header(mut payload: Payload<'_>) -> Option<()> {
    // Class, weight, size of the body.
    payload.skip(2 + 2 + 8)?;
    let flags = payload.short()?;
    for bit in (2..16).rev().filter(|bit| flags & (1 << bit) != 0) {
        match bit {
            13 => {
                let length = payload.long()?;
                clean_table(Payload(payload.take(length)?), 1)?;
            }
            // Delivery mode, priority.
            12 | 11 => payload.skip(1)?,
            // Timestamp.
            6 => payload.skip(8)?,
            _ => payload.short_string()?,
        }
    }
    Some(())
}

fn clean_table(mut table: Payload<'_>, depth: usize) -> Option<()> {
    while !table.0.is_empty() {
        table.short_string()?;
        clean_value(&mut table, depth)?;
    }
    Some(())
}

fn clean_list(mut list: Payload<'_>, depth: usize) -> Option<()> {
    while !list.0.is_empty() {
        clean_value(&mut list, depth)?;
    }
    Some(())
}

/// A value with its type, as RabbitMQ and lapin spell the types.
fn clean_value(payload: &mut Payload<'_>, depth: usize) -> Option<()> {
    let kind = payload.take(1)?.first_mut()?;
    let fixed = match *kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'l' | b'L' | b'd' | b'T' => 8,
        b'F' | b'A' if depth == DEEPEST => {
            // The same length and bytes, of which nobody thinks that they are more than that.
            *kind = b'x';
            payload.long()?
        }
        b'S' | b'x' => payload.long()?,
        b'F' => {
            let length = payload.long()?;
            return clean_table(Payload(payload.take(length)?), depth + 1);
        }
        b'A' => {
            let length = payload.long()?;
            return clean_list(Payload(payload.take(length)?), depth + 1);
        }
        _ => return None,
    };
    payload.skip(fixed)
}

/// Bytes not looked at yet.
struct Payload<'a>(&'a mut [u8]);

impl<'a> Payload<'a> {
    fn take(&mut self, count: usize) -> Option<&'a mut [u8]> {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(|_| ())
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn long(&mut self) -> Option<usize> {
        usize::try_from(u32::from_be_bytes(self.take(4)?.try_into().ok()?)).ok()
    }

    /// A string with a length of one byte, made UTF-8.
    fn short_string(&mut self) -> Option<()> {
        let length = usize::from(*self.take(1)?.first()?);
        let mut text = self.take(length)?;
        while let Err(error) = std::str::from_utf8(text) {
            let wrong =
                error.valid_up_to()..error.error_len().map_or(text.len(), |length| error.valid_up_to() + length);
            let end = wrong.end;
            text[wrong].fill(b'?');
            text = &mut text[end..];
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::AMQPValue;
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[0xCE]].concat()
    }

    fn short_string(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()][..], text].concat()
    }

    fn long_string(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn header(flags: u16, properties: &[u8]) -> Vec<u8> {
        frame(HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..], &flags.to_be_bytes(), properties].concat())
    }

    fn cleaned(mut bytes: Vec<u8>) -> Vec<u8> {
        assert_eq!(Cleaner::default().clean(&mut bytes), bytes.len());
        bytes
    }

    #[test]
    fn bytes_that_are_not_utf8_become_question_marks() {
        // Content type, headers, delivery mode, message id.
        let table = [short_string(b"n\xff"), vec![b'S'], long_string(b"\xfe stays"), short_string(b"m"), vec![b'V']];
        let properties = |id: &[u8]| [short_string(b"a\xc3"), long_string(&table.concat()), vec![2], short_string(id)];
        let clean = cleaned(header(0b1011_0000_1000_0000, &properties("ä\u{1F600}".as_bytes()).concat()));
        let expected = [short_string(b"n?"), vec![b'S'], long_string(b"\xfe stays"), short_string(b"m"), vec![b'V']];
        let expected =
            [short_string(b"a?"), long_string(&expected.concat()), vec![2], short_string("ä\u{1F600}".as_bytes())];
        assert_eq!(clean, header(0b1011_0000_1000_0000, &expected.concat()));
        let clean = cleaned(header(0b1000_0000, &short_string(b"\xff\xf0\x9fok\xe2")));
        assert_eq!(clean, header(0b1000_0000, &short_string(b"???ok?")));
    }

    #[test]
    fn routing_keys_are_cleaned_too() {
        let deliver = |key: &[u8]| {
            let numbers = [0; 9];
            frame(METHOD, &[&[0, 60, 0, 60][..], b"\x01t", &numbers, b"\x00", &short_string(key)].concat())
        };
        assert_eq!(cleaned(deliver(b"k\xff")), deliver(b"k?"));
        let got =
            |key: &[u8]| frame(METHOD, &[&[0, 60, 0, 71][..], &[0; 9], b"\x00", &short_string(key), &[0; 4]].concat());
        assert_eq!(cleaned(got(b"\xff")), got(b"?"));
    }

    #[test]
    fn deep_tables_and_lists_become_bytes() {
        let mut value = vec![b'V'];
        for level in 0..5_000 {
            value = if level % 2 == 0 {
                [vec![b'A'], long_string(&value)].concat()
            } else {
                [vec![b'F'], long_string(&[short_string(b"k"), value].concat())].concat()
            };
        }
        let table = long_string(&[short_string(b"k"), value].concat());
        let clean = cleaned(header(0b0010_0000_0000_0000, &table));
        assert_eq!(clean.len(), header(0b0010_0000_0000_0000, &table).len());
        let parsed = lapin::protocol::basic::parse_properties(&clean[FRAME_HEAD + 12..clean.len() - FRAME_END]);
        let headers = parsed.unwrap().1.headers().clone().unwrap();
        assert_eq!(depth_of(&AMQPValue::FieldTable(headers)), DEEPEST);
    }

    fn depth_of(value: &AMQPValue) -> usize {
        match value {
            AMQPValue::FieldTable(table) => 1 + table.inner().values().map(depth_of).max().unwrap_or(0),
            AMQPValue::FieldArray(list) => 1 + list.as_slice().iter().map(depth_of).max().unwrap_or(0),
            _ => 0,
        }
    }

    #[test]
    fn contents_pass_as_they_come_and_a_frame_that_is_not_whole_waits() {
        let bytes = [frame(3, b"\xff\xff"), header(0b1000_0000, &short_string(b"\xff")), frame(8, b"")].concat();
        let expected = [frame(3, b"\xff\xff"), header(0b1000_0000, &short_string(b"?")), frame(8, b"")].concat();
        for cut in 0..bytes.len() {
            let mut cleaner = Cleaner::default();
            let mut out = Vec::new();
            let mut held = bytes[..cut].to_vec();
            let ready = cleaner.clean(&mut held);
            out.extend(held.drain(..ready));
            held.extend(&bytes[cut..]);
            let ready = cleaner.clean(&mut held);
            out.extend(held.drain(..ready));
            assert_eq!((out, held.len()), (expected.clone(), 0), "cut at {cut}");
        }
    }

    #[test]
    fn a_server_of_another_protocol_is_left_to_lapin() {
        assert_eq!(cleaned(b"AMQP\x00\x00\x09\x01".to_vec()), b"AMQP\x00\x00\x09\x01");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_change_their_number(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 1u8..3) {
            let mut cleaner = Cleaner::default();
            prop_assert!(cleaner.clean(&mut bytes) <= bytes.len());
            let mut whole = frame(kind, &bytes);
            prop_assert_eq!(Cleaner::default().clean(&mut whole), bytes.len() + FRAME_HEAD + FRAME_END);
        }

        #[test]
        fn lapin_reads_what_was_cleaned_and_legible_text_stays(
            name in proptest::collection::vec(any::<u8>(), 0..40),
            id in proptest::collection::vec(any::<u8>(), 0..255),
            legible in ".{0,40}",
        ) {
            let values = [short_string(&name), vec![b'A'], long_string(b"T\0\0\0\0\0\0\0\x07t\x01"), short_string(b"d")];
            let table = [values.concat(), b"D\0\0\0\0\x01".to_vec()].concat();
            let properties = [long_string(&table), short_string(&id), short_string(legible.as_bytes())].concat();
            let clean = cleaned(header(0b0010_0000_1010_0000, &properties));
            let parsed = lapin::protocol::basic::parse_properties(&clean[FRAME_HEAD + 12..clean.len() - FRAME_END]);
            let (rest, parsed) = parsed.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
            prop_assert!(rest.is_empty());
            prop_assert_eq!(parsed.kind().as_ref().map(|kind| kind.as_str()), Some(legible.as_str()));
        }
    }
}
