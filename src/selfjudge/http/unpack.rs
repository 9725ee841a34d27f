//! Compressed request bodies: `Content-Encoding: gzip`, decompressed within the size limit of bodies.

use std::io::{ErrorKind, Read};

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use flate2::read::MultiGzDecoder;

use super::error::ApiError;
use super::memory::{Gathered, Holding};
use crate::call::offload;

/// Maximum bytes of a body after decompression.
#[derive(Debug, Clone, Copy)]
pub struct MaxBody(pub usize);

impl Default for MaxBody {
    fn default() -> Self {
        Self(8 << 20)
    }
}

/// The compression of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    None,
    Gzip,
}

impl Packing {
    /// Returns the compression that the headers name.
    ///
    /// # Errors
    /// 415 if it is not supported.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let named = headers.get_all(header::CONTENT_ENCODING).iter();
        let named = named.filter_map(|value| value.to_str().ok());
        let all = named.collect::<Vec<_>>().join(",");
        let mut packing = Self::None;
        for name in all.split(',').map(str::trim) {
            match name.to_ascii_lowercase().as_str() {
                "" | "identity" => {}
                "gzip" | "x-gzip" if packing == Self::None => packing = Self::Gzip,
                _ => {
                    return Err(ApiError::new(
                        StatusCode::UNSUPPORTED_MEDIA_TYPE,
                        "unsupported_encoding",
                        format!("the content encoding {all:?} is not supported; use gzip"),
                    )
                    .about("Content-Encoding"));
                }
            }
        }
        Ok(packing)
    }

    /// Returns the decompressed body.
    ///
    /// # Errors
    /// Fails if the data are not in the named format, or as soon as they exceed `most` bytes or the call's memory.
    pub async fn unpacked(
        self,
        bytes: Bytes,
        most: MaxBody,
        holding: Holding,
    ) -> Result<Bytes, ApiError> {
        match self {
            Self::None => Ok(bytes),
            Self::Gzip => offload(move || gunzipped(&bytes, most.0, holding)).await?,
        }
    }
}

fn gunzipped(packed: &[u8], most: usize, holding: Holding) -> Result<Bytes, ApiError> {
    /// Bytes that are decompressed at a time.
    const PIECE: usize = 64 << 10;
    let mut unpacked = Gathered::begin(holding, 0)?;
    let mut decoder = MultiGzDecoder::new(packed);
    let mut piece = vec![0; PIECE];
    loop {
        let read = match decoder.read(&mut piece) {
            Ok(0) => return Ok(unpacked.into_bytes()?.into()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(ApiError::new(
                    StatusCode::BAD_REQUEST,
                    "invalid_body",
                    format!("the body is not gzip: {error}"),
                ));
            }
        };
        if unpacked.len() + read > most {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the unpacked body has more than {most} bytes"),
            ));
        }
        unpacked.push(&piece[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use axum::response::IntoResponse;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::super::memory::CallMemory;
    use super::*;
    use engine::{Tenant, TenantShare};
    use telemetry::Pace;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Decompresses without a memory limit.
    fn gunzipped(packed: &[u8], most: usize) -> Result<Bytes, ApiError> {
        super::gunzipped(packed, most, Holding::default())
    }

    #[test]
    fn what_is_unpacked_is_paid_for() {
        let memory = CallMemory::new(2 << 20, TenantShare::default(), Pace::default());
        let tenant = Tenant::of_key(&[1; 32]);
        // A tenant may use 1 MiB.
        for (size, expected) in [(600_000, 200), (1 << 20, 200), ((1 << 20) + 1, 413)] {
            let holding = memory.open(tenant);
            let unpacked = super::gunzipped(&packed(&vec![b'x'; size]), 8 << 20, holding.clone());
            let status = match unpacked {
                Ok(_) => 200,
                Err(error) => error.into_response().status().as_u16(),
            };
            assert_eq!(status, expected, "{size}");
            assert!(expected != 200 || holding.bytes() >= size);
        }
        let other = memory.open(tenant);
        other.grow(600_000).unwrap();
        let refused = super::gunzipped(&packed(&[b'x'; 600_000]), 8 << 20, memory.open(tenant));
        let status = refused.unwrap_err().into_response().status();
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    }

    #[test]
    fn bodies_are_unpacked_to_their_bound_and_no_further() {
        for size in [0, 1, 1000] {
            let body = vec![b'x'; size];
            assert_eq!(gunzipped(&packed(&body), 1000).unwrap(), body);
        }
        // Two concatenated files decompress to one.
        let two = [packed(b"ab"), packed(b"cd")].concat();
        assert_eq!(gunzipped(&two, 4).unwrap(), "abcd");
        // A hundred megabytes compressed to a hundred kilobytes.
        let bomb = packed(&vec![0; 100 << 20]);
        for (refused, status) in [
            (bomb, StatusCode::PAYLOAD_TOO_LARGE),
            (packed(&[0; 1001]), StatusCode::PAYLOAD_TOO_LARGE),
            (two[..two.len() - 3].to_vec(), StatusCode::BAD_REQUEST),
            (b"{}".to_vec(), StatusCode::BAD_REQUEST),
            (Vec::new(), StatusCode::BAD_REQUEST),
        ] {
            let error = gunzipped(&refused, 1000).unwrap_err();
            assert_eq!(error.into_response().status(), status);
        }
    }

    #[test]
    fn packings_are_known_by_name() {
        let of = |name: &str| {
            let value = name.parse().unwrap();
            Packing::of(&HeaderMap::from_iter([(header::CONTENT_ENCODING, value)]))
        };
        assert_eq!(Packing::of(&HeaderMap::new()).unwrap(), Packing::None);
        for (name, packing) in [
            ("identity", Packing::None),
            ("gzip", Packing::Gzip),
            ("GZIP", Packing::Gzip),
            ("identity, x-gzip", Packing::Gzip),
        ] {
            assert_eq!(of(name).unwrap(), packing, "{name}");
        }
        for name in ["br", "deflate", "zstd", "gzip, gzip"] {
            assert!(of(name).is_err(), "{name}");
        }
    }
}
