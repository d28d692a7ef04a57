//! A picture of a display as QEMU writes it, made a PNG.

use std::io::Write;

/// A display of 4096 × 2160 takes 26 MiB.
pub(super) const MOST_PICTURE_BYTES: usize = 32 << 20;
/// Longer PNGs are of no boot: text and logos pack to tens of KiB.
const MOST_PNG_BYTES: usize = 4 << 20;
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// From a binary portable pixmap, or a PNG where QEMU can write those. The sentence says why not.
pub(super) fn to_png(picture: &[u8]) -> Result<Vec<u8>, String> {
    let png = match picture.starts_with(PNG_SIGNATURE) {
        true => picture.to_vec(),
        false => encode(&Pixmap::parse(picture)?).map_err(|error| error.to_string())?,
    };
    match png.len() > MOST_PNG_BYTES {
        true => Err(format!(
            "the picture has {} KiB, more than the {} KiB that are kept",
            png.len() >> 10,
            MOST_PNG_BYTES >> 10
        )),
        false => Ok(png),
    }
}

/// Three bytes a pixel: red, green, blue.
#[derive(Debug, PartialEq, Eq)]
struct Pixmap<'a> {
    width: u32,
    height: u32,
    pixels: &'a [u8],
}

impl Pixmap<'_> {
    /// Reads `P6 WIDTH HEIGHT 255`, one white space, and the pixels.
    fn parse(bytes: &[u8]) -> Result<Pixmap<'_>, String> {
        let wrong = || "QEMU's picture is no portable pixmap".to_owned();
        let mut rest = bytes.strip_prefix(b"P6").ok_or_else(wrong)?;
        let mut number = || {
            rest = rest.trim_ascii_start();
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (number, after) = rest.split_at(digits);
            rest = after;
            std::str::from_utf8(number)
                .ok()
                .and_then(|number| number.parse::<u32>().ok())
        };
        let (width, height, most) = match (number(), number(), number()) {
            (Some(width), Some(height), Some(most)) => (width, height, most),
            _ => return Err(wrong()),
        };
        let pixels = rest.get(1..).unwrap_or_default();
        let wanted = u64::from(width) * u64::from(height) * 3;
        if most != 255 || wanted == 0 || pixels.len() as u64 != wanted {
            return Err(wrong());
        }
        Ok(Pixmap {
            width,
            height,
            pixels,
        })
    }
}

fn encode(pixmap: &Pixmap<'_>) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, pixmap.width, pixmap.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixmap.pixels)?;
    writer.finish()?;
    file.flush()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixmap_becomes_a_png_of_the_same_picture() {
        let pixels: Vec<u8> = (0..2 * 3 * 3).collect();
        let mut pixmap = b"P6\n2 3\n255\n".to_vec();
        pixmap.extend_from_slice(&pixels);
        let png = to_png(&pixmap).expect("a PNG");
        let mut reader = png::Decoder::new(std::io::Cursor::new(&png))
            .read_info()
            .expect("a header");
        assert_eq!((reader.info().width, reader.info().height), (2, 3));
        let mut read = vec![0; pixels.len()];
        reader.next_frame(&mut read).expect("a picture");
        assert_eq!(read, pixels);
        assert_eq!(to_png(&png).expect("the same"), png);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for bytes in [
            b"" as &[u8],
            b"P6",
            b"P6 2 2 255 ",
            b"P6 0 0 255 ",
            b"P6 1 1 65535 abcdef",
            b"P5 1 1 255 a",
            b"P6 99999999999 1 255 abc",
        ] {
            assert!(to_png(bytes).is_err(), "{bytes:?}");
        }
    }
}
