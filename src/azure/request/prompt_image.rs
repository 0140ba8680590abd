//! An image in a prompt, and the tokens that a model bills for it: OpenAI's published rules ("Images and vision",
//! "Calculating costs"), which need its size.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use crate::azure::json;
use crate::azure::json_text::decode_content;

/// How much of an image is searched for its size. In a JPEG, a preview can come before the size.
const MAX_HEADER_BASE64_CHARS: usize = 256 * 1024;
/// Decodes the beginning of a text, and so without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The side of a tile, and those of the squares that an image is scaled down to before it is cut into tiles.
const TILE_SIDE: f64 = 512.0;
const MAX_TILED_SIDE: f64 = 2048.0;
const MAX_TILED_SHORT_SIDE: f64 = 768.0;
/// The side of a patch, and the most patches of an image.
const PATCH_SIDE: f64 = 32.0;
const MAX_PATCHES: f64 = 1536.0;

/// How many tokens a model bills for an image.
#[derive(Clone, Copy, Debug)]
enum ImagePrice {
    /// Some for the image, and for each tile.
    Tiles { base: u64, per_tile: u64 },
    /// For each patch.
    Patches { factor: f64 },
}

/// The prices by model: that of the first entry with which the model's name begins.
const IMAGE_PRICES: [(&str, ImagePrice); 12] = [
    ("gpt-4o-mini", ImagePrice::Tiles { base: 2833, per_tile: 5667 }),
    ("gpt-4o", ImagePrice::Tiles { base: 85, per_tile: 170 }),
    ("gpt-4.1-mini", ImagePrice::Patches { factor: 1.62 }),
    ("gpt-4.1-nano", ImagePrice::Patches { factor: 2.46 }),
    ("gpt-4.1", ImagePrice::Tiles { base: 85, per_tile: 170 }),
    ("gpt-4.5", ImagePrice::Tiles { base: 85, per_tile: 170 }),
    ("gpt-4-turbo", ImagePrice::Tiles { base: 85, per_tile: 170 }),
    ("gpt-5-mini", ImagePrice::Patches { factor: 1.62 }),
    ("gpt-5-nano", ImagePrice::Patches { factor: 2.46 }),
    ("o4-mini", ImagePrice::Patches { factor: 1.72 }),
    ("o1", ImagePrice::Tiles { base: 75, per_tile: 150 }),
    ("o3", ImagePrice::Tiles { base: 75, per_tile: 150 }),
];
/// The price of `gpt-5` itself. Newer models, whose names begin with the same, have other prices.
const GPT_5_PRICE: ImagePrice = ImagePrice::Tiles { base: 70, per_tile: 140 };

/// An image in a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptImage {
    /// Where in the JSON the object begins that it is in.
    object_start: usize,
    has_url: bool,
    is_low_detail: bool,
    /// Its width and height, if it is part of the prompt.
    size: Option<(u32, u32)>,
}

impl PromptImage {
    /// The image of the JSON object that begins there, which is added if it is new.
    pub(super) fn of_object(images: &mut Vec<Self>, object_start: usize) -> &mut Self {
        let known = images.iter().rposition(|image| image.object_start == object_start);
        let index = known.unwrap_or_else(|| {
            images.push(Self { object_start, ..Self::default() });
            images.len() - 1
        });
        &mut images[index]
    }

    /// Takes its URL, a JSON string.
    pub(super) fn read_url(&mut self, raw: &str) {
        self.has_url = true;
        self.size = size_in_data_url(raw);
    }

    /// Takes its detail, a JSON string.
    pub(super) fn read_detail(&mut self, raw: &str) {
        self.is_low_detail = raw == "\"low\"";
    }

    pub(super) fn has_url(&self) -> bool {
        self.has_url
    }

    /// The tokens that a model bills for it; `None` if that is not known.
    pub fn tokens(&self, model: &str) -> Option<u64> {
        let model = model.to_ascii_lowercase();
        let price = IMAGE_PRICES.iter().find(|(name, _)| model.starts_with(name)).map(|(_, price)| *price);
        let is_gpt_5 = || model == "gpt-5" || model.starts_with("gpt-5-2") || model.starts_with("gpt-5-chat");
        match price.or_else(|| is_gpt_5().then_some(GPT_5_PRICE))? {
            ImagePrice::Tiles { base, .. } if self.is_low_detail => Some(base),
            ImagePrice::Tiles { base, per_tile } => Some(base + per_tile * tile_count(self.size?)),
            ImagePrice::Patches { .. } if self.is_low_detail => None,
            ImagePrice::Patches { factor } => Some((patch_count(self.size?) * factor).ceil() as u64),
        }
    }
}

/// The tiles of an image that is scaled down to 2048 by 2048, and then to 768 at its short side.
fn tile_count((width, height): (u32, u32)) -> u64 {
    let (width, height) = (f64::from(width), f64::from(height));
    let scale = (MAX_TILED_SIDE / width.max(height)).min(1.0);
    let (width, height) = (width * scale, height * scale);
    let scale = (MAX_TILED_SHORT_SIDE / width.min(height)).min(1.0);
    let (width, height) = (width * scale, height * scale);
    // What is scaled to a multiple of the side must not fill one more tile by a rounding error.
    let tiles = |length: f64| (length / TILE_SIDE - 1e-6).ceil().max(1.0);
    (tiles(width) * tiles(height)) as u64
}

/// The patches of an image, which is scaled down if they are too many.
fn patch_count((width, height): (u32, u32)) -> f64 {
    let (width, height) = (f64::from(width) / PATCH_SIDE, f64::from(height) / PATCH_SIDE);
    let patches = width.ceil() * height.ceil();
    if patches <= MAX_PATCHES {
        return patches;
    }
    let scale = (MAX_PATCHES / (width * height)).sqrt();
    let (scaled_width, scaled_height) = (width * scale, height * scale);
    let shrink = (scaled_width.floor() / scaled_width).min(scaled_height.floor() / scaled_height);
    let patches = |length: f64| (length * shrink - 1e-6).ceil();
    (patches(scaled_width) * patches(scaled_height)).min(MAX_PATCHES)
}

/// The width and height of the image in a data URL, a JSON string.
fn size_in_data_url(raw: &str) -> Option<(u32, u32)> {
    let (head, data) = json::string_content(raw)?.split_once(";base64,")?;
    if !head.starts_with("data:") {
        return None;
    }
    let beginning = data.get(..data.floor_char_boundary(MAX_HEADER_BASE64_CHARS.min(data.len())))?;
    let beginning = decode_content(beginning);
    // Whole groups of four characters, which are three bytes.
    let groups = beginning.get(..beginning.len() / 4 * 4).unwrap_or_default();
    size_of_image(&BASE64.decode(groups).ok()?).filter(|(width, height)| *width > 0 && *height > 0)
}

/// The width and height of an image that begins with these bytes.
fn size_of_image(bytes: &[u8]) -> Option<(u32, u32)> {
    let big = |at: usize| Some(u32::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?)));
    let little = |at: usize| Some(u32::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?)));
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        let number = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        return Some((number(16)?, number(20)?));
    }
    if bytes.starts_with(b"GIF8") {
        return Some((little(6)?, little(8)?));
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        let wide = |at: usize| Some((little(at)? | u32::from(*bytes.get(at + 2)?) << 16) + 1);
        return match bytes.get(12..16)? {
            b"VP8X" => Some((wide(24)?, wide(27)?)),
            b"VP8 " => Some((little(26)? & 0x3fff, little(28)? & 0x3fff)),
            b"VP8L" => {
                let bits = u32::from_le_bytes(*bytes.get(21..)?.first_chunk()?);
                Some(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
            }
            _ => None,
        };
    }
    if !bytes.starts_with(b"\xff\xd8") {
        return None;
    }
    // The segments of a JPEG, up to the one that begins a frame.
    let mut position = 2;
    loop {
        match (*bytes.get(position)?, *bytes.get(position + 1)?) {
            // Fill bytes.
            (0xff, 0xff) => position += 1,
            (0xff, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf) => {
                return Some((big(position + 7)?, big(position + 5)?));
            }
            (0xff, 0x01 | 0xd0..=0xd9) => position += 2,
            (0xff, _) => position += 2 + big(position + 2)? as usize,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend([8, 2, 0, 0, 0]);
        bytes
    }

    fn image(size: Option<(u32, u32)>, is_low_detail: bool) -> PromptImage {
        PromptImage { object_start: 0, has_url: true, is_low_detail, size }
    }

    #[test]
    fn the_published_prices_apply() {
        let of_size = |width, height| image(Some((width, height)), false);
        for (model, image, expected) in [
            // The examples of the documentation.
            ("gpt-4o-2024-11-20", of_size(1024, 1024), Some(765)),
            ("gpt-4o", of_size(2048, 4096), Some(1105)),
            ("gpt-4o", image(Some((4096, 8192)), true), Some(85)),
            ("gpt-4.1-mini", of_size(1024, 1024), Some(1659)),
            ("gpt-4.1-mini", of_size(1800, 2400), Some(2353)),
            ("GPT-4.1", of_size(512, 512), Some(255)),
            ("gpt-4o-mini", of_size(512, 512), Some(8500)),
            ("o1-2024-12-17", of_size(513, 100), Some(375)),
            ("gpt-5-2025-08-07", of_size(512, 512), Some(210)),
            ("gpt-5", image(None, true), Some(70)),
            ("gpt-4o", image(None, false), None),
            ("gpt-5-mini", image(Some((1, 1)), true), None),
            ("gpt-5.1", of_size(512, 512), None),
            ("gpt-5-codex", of_size(512, 512), None),
            ("llama", of_size(512, 512), None),
        ] {
            assert_eq!(image.tokens(model), expected, "{model} {image:?}");
        }
    }

    #[test]
    fn the_size_is_in_the_beginning_of_an_image() {
        let jpeg =
            b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xdb\0\x03x\xff\xc2\0\x0b\x08\x01\x02\x03\x04\x01".to_vec();
        let webp = |chunk: &[u8]| [b"RIFF\0\0\0\0WEBP", chunk].concat();
        for (bytes, expected) in [
            (png(640, 480), Some((640, 480))),
            (b"GIF89a\x0a\0\x14\0more".to_vec(), Some((10, 20))),
            (jpeg, Some((0x304, 0x102))),
            (webp(b"VP8X\0\0\0\0\0\0\0\0\x0f\0\x01\x1f\0\0"), Some((0x10010, 0x20))),
            (webp(b"VP8 \0\0\0\0\0\0\0\x9d\x01\x2a\x40\x41\x20\0"), Some((0x140, 0x20))),
            (webp(b"VP8L\0\0\0\0\x2f\x3f\xc0\x07\0"), Some((64, 32))),
            (png(0, 480), None),
            (b"\xff\xd8\xff\xe0\0\0".to_vec(), None),
            (b"BM123456".to_vec(), None),
            (Vec::new(), None),
        ] {
            let url = format!("\"data:image/x;base64,{}\"", STANDARD.encode(&bytes));
            assert_eq!(size_in_data_url(&url), expected, "{}", bytes.escape_ascii());
        }
        let long = [png(3, 4), vec![0; 500_000]].concat();
        assert_eq!(size_in_data_url(&format!("\"data:;base64,{}\"", STANDARD.encode(long))), Some((3, 4)));
        for url in ["\"https://x/;base64,AAAA\"", "\"data:image/png;base64,!\"", "\"data:image/png\"", "1"] {
            assert_eq!(size_in_data_url(url), None, "{url}");
        }
    }

    #[test]
    fn url_and_detail_are_of_one_image_if_they_are_in_one_object() {
        let mut images = Vec::new();
        PromptImage::of_object(&mut images, 7).read_detail("\"low\"");
        PromptImage::of_object(&mut images, 9).read_url("\"https://x\"");
        PromptImage::of_object(&mut images, 7).read_url("\"https://y\"");
        let facts: Vec<_> = images.iter().map(|image| (image.has_url, image.is_low_detail)).collect();
        assert_eq!(facts, [(true, true), (true, false)]);
    }
}
