//! A streaming reader for the elements of a JSON array.

use std::io::BufRead;

use serde_json::Value;

use super::{MAX_RECORD_BYTES, SourceError, damaged};

/// The part of the array that was read last.
#[derive(Clone, Copy, PartialEq)]
enum At {
    Start,
    /// After the opening bracket: the array may be empty.
    Open,
    /// After a comma: another element must follow.
    Comma,
    Closed,
}

/// Reads an array element by element. Memory holds one element, regardless of the array's length.
pub(crate) struct ArrayElements {
    bytes: Box<dyn BufRead + Send>,
    at: At,
    read: usize,
    element: Vec<u8>,
}

impl ArrayElements {
    /// Returns a reader of the array, before whose bracket only white space is expected.
    pub fn new(bytes: Box<dyn BufRead + Send>) -> Self {
        Self {
            bytes,
            at: At::Start,
            read: 0,
            element: Vec::new(),
        }
    }

    /// Returns the number of elements that have been started.
    pub fn read(&self) -> usize {
        self.read
    }

    pub fn next(&mut self) -> Result<Option<Value>, SourceError> {
        if self.at == At::Start {
            self.skip_past(b'[')?;
            self.at = At::Open;
        }
        if self.at == At::Closed {
            return Ok(None);
        }
        self.read += 1;
        let ended_by = self.fill()?;
        let blank = self.element.trim_ascii().is_empty();
        let empty = blank && self.at == At::Open && ended_by == b']';
        self.at = match ended_by {
            b']' => At::Closed,
            _ => At::Comma,
        };
        if self.at == At::Closed {
            self.refuse_more()?;
        }
        if empty {
            return Ok(None);
        }
        serde_json::from_slice(&self.element)
            .map(Some)
            .map_err(SourceError::Json)
    }

    /// Reads the bytes of an element and its delimiter, which is returned: a comma or the closing bracket.
    fn fill(&mut self) -> Result<u8, SourceError> {
        self.element.clear();
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let chunk = self.bytes.fill_buf()?;
            if chunk.is_empty() {
                return Err(damaged("the file ends within its array").into());
            }
            let end = chunk.iter().position(|&byte| {
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                    return false;
                }
                match byte {
                    b'"' => in_string = true,
                    b'[' | b'{' => depth += 1,
                    b']' | b'}' if depth > 0 => depth -= 1,
                    b',' | b']' if depth == 0 => return true,
                    _ => {}
                }
                false
            });
            let taken = end.unwrap_or(chunk.len());
            if self.element.len() + taken > MAX_RECORD_BYTES {
                return Err(SourceError::TooLong);
            }
            self.element.extend_from_slice(&chunk[..taken]);
            let ended_by = end.map(|end| chunk[end]);
            self.bytes.consume(taken + usize::from(end.is_some()));
            if let Some(byte) = ended_by {
                return Ok(byte);
            }
        }
    }

    fn skip_past(&mut self, wanted: u8) -> Result<(), SourceError> {
        self.element.clear();
        self.bytes.read_until(wanted, &mut self.element)?;
        Ok(())
    }

    fn refuse_more(&mut self) -> Result<(), SourceError> {
        loop {
            let chunk = self.bytes.fill_buf()?;
            if chunk.is_empty() {
                return Ok(());
            }
            if !chunk.trim_ascii().is_empty() {
                return Err(damaged("there is text after the array").into());
            }
            let length = chunk.len();
            self.bytes.consume(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use serde_json::json;

    use super::*;

    /// Reads through a buffer of `capacity` bytes, so that every byte is at a buffer boundary once.
    fn read(text: &'static str, capacity: usize) -> Result<Vec<Value>, usize> {
        let reader = BufReader::with_capacity(capacity, text.as_bytes());
        let mut elements = ArrayElements::new(Box::new(reader));
        let mut found = Vec::new();
        loop {
            match elements.next() {
                Ok(Some(value)) => found.push(value),
                Ok(None) => return Ok(found),
                Err(_) => return Err(elements.read()),
            }
        }
    }

    #[test]
    fn elements_come_one_by_one_whatever_the_buffer_holds() {
        let text = r#"  [ {"a": "],[{\"\\", "b": [1, {"c": []}]} ,
            "x,]" , 7,[[]]]
        "#;
        let want = vec![
            json!({"a": "],[{\"\\", "b": [1, {"c": []}]}),
            json!("x,]"),
            json!(7),
            json!([[]]),
        ];
        for capacity in [1, 2, 3, 7, 4096] {
            assert_eq!(read(text, capacity), Ok(want.clone()), "{capacity}");
            assert_eq!(read("[]", capacity), Ok(vec![]));
            assert_eq!(read(" [\n] \n", capacity), Ok(vec![]));
        }
    }

    #[test]
    fn damaged_arrays_name_the_element() {
        for (text, element) in [
            ("[1, 2", 2),
            ("[1, {\"a\": ]", 2),
            ("[1,]", 2),
            ("[,1]", 1),
            ("[1] 2", 1),
            ("[1 2]", 1),
            ("[", 1),
            ("[\"a]", 1),
        ] {
            assert_eq!(read(text, 4), Err(element), "{text}");
        }
    }
}
