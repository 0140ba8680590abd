//! The time in an id of Azure. It is not documented, so it is a hint and nothing more.

/// 2025-01-01. Ids with a time are younger.
const EARLIEST_TIME: u32 = 1_735_689_600;
const DAY: u32 = 24 * 60 * 60;

/// When an object was made, in seconds since 1970, if its id tells it: after the prefix come 16 hexadecimal digits
/// that a response and its items share, `00` or `01`, and the time in 8 hexadecimal digits. Implausible times are
/// `None`: before 2025, or more than a day after `now`.
pub fn time_of_id(id: &str, now: u32) -> Option<u32> {
    let (_, rest) = id.split_once('_')?;
    let (chain, rest) = rest.split_at_checked(16)?;
    let (version, rest) = rest.split_at_checked(2)?;
    let time = rest.get(..8)?;
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex(chain) || !is_hex(time) || !matches!(version, "00" | "01") {
        return None;
    }
    let time = u32::from_str_radix(time, 16).ok()?;
    (EARLIEST_TIME..=now.saturating_add(DAY)).contains(&time).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-03-01 in the ids below.
    const MADE: u32 = 1_772_323_200;

    #[test]
    fn only_plausible_times_are_read() {
        let made = format!("{MADE:08x}");
        let rows = [
            (format!("resp_0992cccae6a7c96700{made}b6b08196a1"), MADE, Some(MADE)),
            (format!("rs_0992cccae6a7c96701{}b6b0", made.to_uppercase()), MADE, Some(MADE)),
            (format!("msg_0992cccae6a7c96700{made}"), MADE + 900_000, Some(MADE)),
            (format!("msg_0992cccae6a7c96700{made}"), MADE - DAY, Some(MADE)),
            (format!("msg_0992cccae6a7c96700{made}"), MADE - DAY - 1, None),
            (format!("msg_0992cccae6a7c96700{:08x}", EARLIEST_TIME - 1), MADE, None),
            (format!("msg_0992cccae6a7c96702{made}"), MADE, None),
            (format!("msg_0992cccae6a7c96x00{made}"), MADE, None),
            (format!("msg_0992cccae6a7c96700+{}", &made[..7]), MADE, None),
            (format!("file-0992cccae6a7c96700{made}"), MADE, None),
            ("msg_0992cccae6a7c9670069".to_owned(), MADE, None),
            // From 2025, with the digits that a response and its items share at the end.
            ("resp_68ecb1a0c8b4819f9c3a0992cccae6a7c967".to_owned(), MADE, None),
            ("resp_ää0992cccae6a7c967006a".to_owned(), MADE, None),
            (String::new(), MADE, None),
        ];
        for (id, now, expected) in rows {
            assert_eq!(time_of_id(&id, now), expected, "{id}");
        }
    }

    proptest! {
        #[test]
        fn any_id_can_be_read(id in "[a-z]{0,4}_?[0-9a-fé]{0,30}", now: u32) {
            if let Some(time) = time_of_id(&id, now) {
                prop_assert!(time >= EARLIEST_TIME && time <= now.saturating_add(DAY));
            }
        }
    }
}
