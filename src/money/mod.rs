//! Money, exactly: amounts and prices as whole numbers, the price that applies to a response, and what the response
//! costs.
//!
//! Pure: reading prices from a file is left to `config`, and what was billed to `record`.

mod amount;
mod cost;
mod price_list;
mod price_row;

pub use amount::{Amount, AmountError};
pub use cost::{BilledTokens, BilledUnits};
pub use price_list::{PriceList, PricedResponse};
pub use price_row::{PriceKey, PriceRow, PriceSubject, Rates, is_standard_tier};
