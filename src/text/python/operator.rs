//! Python's `%`: the remainder of numbers, and string formatting.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::super::jinja_fuel::{charge, charge_for_text};
use super::refused;
use super::repr::repr;

/// The name of the function that replaces the operator.
pub(super) const NAME: &str = "__modulo";

/// Computes `left % right`.
pub(super) fn modulo(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    let Some(text) = left.as_str() else {
        return remainder(left, right);
    };
    let args: Vec<Value> = match right.is_tuple() {
        true => right.try_iter()?.collect(),
        false => vec![right.clone()],
    };
    charge(state, super::super::jinja::widths(text))?;
    args.iter()
        .try_for_each(|value| charge_for_text(state, value))?;
    // Python's text form for values that `%s` writes; numbers and a dictionary of names are not converted.
    let worded = args.iter().map(|value| match value.kind() {
        ValueKind::None | ValueKind::Seq | ValueKind::Iterable => Value::from(repr(value)),
        ValueKind::Bool if !text.contains("%d") => Value::from(repr(value)),
        ValueKind::Map if !text.contains("%(") => Value::from(repr(value)),
        _ => value.clone(),
    });
    let worded: Vec<Value> = worded.collect();
    format(FormatStyle::Printf, text, &worded).map(Value::from)
}

fn remainder(left: &Value, right: &Value) -> Result<Value, Error> {
    let whole = |value: &Value| match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        _ if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    };
    if let (Some(left), Some(right)) = (whole(left), whole(right)) {
        let rest = left.checked_rem(right);
        let rest = rest.ok_or_else(|| refused("integer modulo by zero"))?;
        // The result has the sign of the divisor.
        let turned = rest != 0 && (rest < 0) != (right < 0);
        return Ok(Value::from(if turned { rest + right } else { rest }));
    }
    let number = |value: &Value| {
        let number = f64::try_from(value.clone());
        number.map_err(|_| {
            refused(format!(
                "% is not defined for {} and {}",
                left.kind(),
                right.kind()
            ))
        })
    };
    let (left, right) = (number(left)?, number(right)?);
    if right == 0.0 {
        return Err(refused("float modulo by zero"));
    }
    let rest = left % right;
    let turned = rest != 0.0 && (rest < 0.0) != (right < 0.0);
    Ok(Value::from(if turned { rest + right } else { rest }))
}
