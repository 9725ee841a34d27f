//! The safetensors file format: an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
//!
//! The format is read here rather than by the `safetensors` crate because that crate's end-of-data sum can overflow on
//! a hostile header, and because this reader's errors name the tensor at fault. It accepts the same files as that
//! crate: tensors in any order in the header, covering the data without holes or overlaps to the very end of the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use serde_json::{Map, Value};

use super::error::ModelError;
use super::safetensors_header::{LENGTH_BYTES, parse};

pub(super) use super::safetensors_header::Entry;

/// A mapped file and its tensors by name.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    pub map: Mmap,
    pub entries: BTreeMap<String, Entry>,
    pub metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io {
            path: path.to_owned(),
            source,
        };
        let file = files::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() < LENGTH_BYTES as u64 {
            // Mapping an empty file is itself an error on some systems.
            return Err(corrupt(
                path,
                "truncated: shorter than a safetensors header",
            ));
        }
        // SAFETY: the mapping is only read, through slices whose bounds were checked when it was made. A file that
        // another process truncates in the meantime would fault; weights are replaced by rename (see `write`), not
        // rewritten.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (entries, metadata) = parse(&map).map_err(|message| corrupt(path, message))?;
        Ok(Self {
            map,
            entries,
            metadata,
        })
    }
}

fn corrupt(path: &Path, message: impl Into<String>) -> ModelError {
    ModelError::Checkpoint {
        path: path.to_owned(),
        message: message.into(),
    }
}

/// Writes tensors in order of name. Atomic: `path` holds the old file or the whole new one, also after a power failure.
///
/// `dtype` converts floating-point tensors (F32, F16, BF16) as they are written; `None` keeps their dtypes, and
/// integers are never converted. The metadata is `{"format": "pt"}` and the entries of `metadata`.
///
/// # Errors
/// Errors with [`ModelError::Io`], or with [`ModelError::TensorDtype`] for a dtype that checkpoints do not support.
pub fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    dtype: Option<DType>,
    metadata: &[(&str, &str)],
) -> Result<(), ModelError> {
    let mut header = Map::new();
    let mut described = Map::from_iter([("format".to_owned(), Value::from("pt"))]);
    for (key, value) in metadata {
        described.insert((*key).to_owned(), Value::from(*value));
    }
    header.insert("__metadata__".into(), Value::Object(described));
    let mut end = 0;
    for (name, tensor) in tensors {
        let as_dtype = saved_dtype(tensor, dtype);
        let spelt = spelling(as_dtype).ok_or_else(|| ModelError::TensorDtype {
            path: path.to_owned(),
            name: name.clone(),
            found: format!("{as_dtype:?}"),
        })?;
        let start = end;
        end += tensor.elem_count() * as_dtype.size_in_bytes();
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": spelt, "shape": tensor.dims(), "data_offsets": [start, end]}),
        );
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' '); // tensors start aligned
    replace(path, |out| {
        let io = |source| ModelError::Io {
            path: path.to_owned(),
            source,
        };
        out.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| out.write_all(&header))
            .map_err(io)?;
        for tensor in tensors.values() {
            let bytes = bytes_of(&tensor.to_dtype(saved_dtype(tensor, dtype))?)?;
            out.write_all(&bytes).map_err(io)?;
        }
        Ok(())
    })
}

fn saved_dtype(tensor: &Tensor, asked: Option<DType>) -> DType {
    match asked {
        Some(dtype) if tensor.dtype().is_float() => dtype,
        _ => tensor.dtype(),
    }
}

fn spelling(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("F32"),
        DType::F16 => Some("F16"),
        DType::BF16 => Some("BF16"),
        DType::F64 => Some("F64"),
        DType::U8 => Some("U8"),
        DType::U32 => Some("U32"),
        DType::I64 => Some("I64"),
        _ => None,
    }
}

fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>, candle_core::Error> {
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    macro_rules! little_endian {
        ($kind:ty) => {
            flat.to_vec1::<$kind>()?
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
    }
    Ok(match tensor.dtype() {
        DType::F32 => little_endian!(f32),
        DType::F16 => little_endian!(f16),
        DType::BF16 => little_endian!(bf16),
        DType::F64 => little_endian!(f64),
        DType::U8 => little_endian!(u8),
        DType::U32 => little_endian!(u32),
        DType::I64 => little_endian!(i64),
        other => candle_core::bail!("dtype {other:?} is never written: this is a bug"),
    })
}

/// Replaces a file atomically by the output of `fill`: writes a temporary file beside it, syncs it, renames it and
/// syncs the folder.
/// On an error the temporary file is removed and `path` is unchanged.
pub fn replace(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let io = |source| ModelError::Io {
        path: path.to_owned(),
        source,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let tmp = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = || -> Result<(), ModelError> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&tmp).map_err(io)?);
        fill(&mut out)?;
        out.into_inner()
            .map_err(|e| io(e.into_error()))?
            .sync_all()
            .map_err(io)?;
        std::fs::rename(&tmp, path).map_err(io)
    };
    if let Err(error) = written() {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&tmp);
        return Err(error);
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io)
}
