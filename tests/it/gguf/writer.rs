//! Writes GGUF files, also such that no other program would write.

/// The numbers of types of values.
pub const U32: u32 = 4;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;

/// A file in the making. The counts follow from what is added, unless they are set.
#[derive(Clone)]
pub struct Writer {
    pub version: u32,
    pub keys: Option<u64>,
    pub tensors: Option<u64>,
    pub metadata: Vec<Vec<u8>>,
    pub table: Vec<Vec<u8>>,
    pub data: Vec<u8>,
    pub alignment: usize,
}

impl Writer {
    pub fn new() -> Self {
        Self {
            version: 3,
            keys: None,
            tensors: None,
            metadata: Vec::new(),
            table: Vec::new(),
            data: Vec::new(),
            alignment: 32,
        }
    }

    /// Adds a value of any type, as bytes.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.metadata
            .push([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, STRING, &string(value))
    }

    pub fn count(self, key: &str, value: u32) -> Self {
        self.raw(key, U32, &value.to_le_bytes())
    }

    /// Adds a line of the table: `shape` as the file has it, innermost dimension first.
    pub fn tensor(mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let mut line = string(name);
        line.extend((shape.len() as u32).to_le_bytes());
        line.extend(shape.iter().flat_map(|n| n.to_le_bytes()));
        line.extend(kind.to_le_bytes());
        line.extend(offset.to_le_bytes());
        self.table.push(line);
        self
    }

    pub fn data(mut self, bytes: usize) -> Self {
        self.data = vec![0; bytes];
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(
            self.tensors
                .unwrap_or(self.table.len() as u64)
                .to_le_bytes(),
        );
        file.extend(
            self.keys
                .unwrap_or(self.metadata.len() as u64)
                .to_le_bytes(),
        );
        file.extend(self.metadata.concat());
        file.extend(self.table.concat());
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(&self.data);
        file
    }
}

/// Returns a string as the format has it: its length, then its bytes.
pub fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// Returns the head of an array: the type of its elements and their number.
pub fn array(kind: u32, len: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes()].concat()
}
