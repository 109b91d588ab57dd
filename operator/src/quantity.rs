//! Kubernetes quantities as numbers, to compare what we wrote with what the API server kept.

/// The value of a quantity such as `500m`, `2` or `16Gi`; nothing when it is not one.
#[must_use]
pub fn parse(text: &str) -> Option<f64> {
    let split = text
        .char_indices()
        .find(|(_, letter)| {
            !(letter.is_ascii_digit() || *letter == '.' || *letter == '+' || *letter == '-')
        })
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0_f64.powi(2),
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        "Ei" => 1024.0_f64.powi(6),
        exponent if exponent.starts_with(['e', 'E']) => 10.0_f64.powi(exponent[1..].parse().ok()?),
        _ => return None,
    };
    Some(number * factor)
}

/// Bytes as whole mebibytes, rounded up.
#[must_use]
pub fn mebibytes(bytes: i64) -> String {
    const MEBIBYTE: i64 = 1024 * 1024;
    let whole = bytes / MEBIBYTE + i64::from(bytes % MEBIBYTE > 0);
    format!("{whole}Mi")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_and_exponents_count() {
        for (text, value) in [
            ("2", 2.0),
            ("500m", 0.5),
            ("1.5Gi", 1_610_612_736.0),
            ("1e3", 1000.0),
            ("1E", 1e18),
            ("12E2", 1200.0),
        ] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
        for text in ["", "Gi", "1Gb", "one"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn mebibytes_round_up() {
        assert_eq!(mebibytes(1), "1Mi");
        assert_eq!(mebibytes(1_048_576), "1Mi");
        assert_eq!(mebibytes(1_048_577), "2Mi");
    }
}
