//! The steps before an answer: one short chain per kind, whose links are local facts.
//!
//! The steps are built *towards* an answer, right or wrong. The links that lead to a wrong answer contain the
//! mistake, so that there are wrong answers with consistent steps, as in a model's own samples.

use super::content::Content;

/// Returns the steps that lead to `answer` (its items). For a right answer every link is true.
pub fn working(content: &Content, answer: &[String]) -> String {
    match content {
        Content::Add { a, b } => add_columns(*a, *b, number(answer)),
        Content::Subtract { a, b } => subtract_columns(*a, *b, number(answer)),
        Content::Pair { target, .. } => format!("{}={target}", answer.join("+")),
        Content::Multiple { of, .. } => {
            let n = number(answer);
            format!("{of}x{}={n}", (n + of / 2) / of)
        }
        Content::Sort { descending, .. } => answer.join(if *descending { ">" } else { "<" }),
        Content::Largest { list, smallest } => running_extreme(list, *smallest, number(answer)),
        Content::Reverse { .. } => numbered(answer.iter().rev()),
        Content::Count { word, letter } => running_count(word, *letter, number(answer) as usize),
        Content::Alphabet { .. } => answer.join("<"),
        Content::Pick { letters, .. } => {
            format!("{} has {} and {}", answer.concat(), letters[0], letters[1])
        }
        Content::Ends { word, .. } => word.chars().map(String::from).collect::<Vec<_>>().join("-"),
        Content::Spell { .. } => numbered(answer.iter()),
    }
}

fn number(answer: &[String]) -> u32 {
    answer.concat().parse().unwrap_or(0)
}

/// Returns column addition from the right, `4+8=12, 3+2+1=6`; a column has the answer's digit, even if it is wrong.
fn add_columns(a: u32, b: u32, answer: u32) -> String {
    let (mut a, mut b, mut left, mut carry) = (a, b, answer, 0);
    let mut columns = Vec::new();
    loop {
        let (x, y) = (a % 10, b % 10);
        (a, b) = (a / 10, b / 10);
        let last = a == 0 && b == 0;
        let sum = x + y + carry;
        let shown = if last {
            left
        } else {
            sum / 10 * 10 + left % 10
        };
        let carried = if carry == 0 { "" } else { "+1" };
        columns.push(format!("{x}+{y}{carried}={shown}"));
        if last {
            return columns.join(", ");
        }
        carry = sum / 10;
        left /= 10;
    }
}

/// Returns column subtraction from the right, `12-8=4, 6-3=3`. A column that is too small borrows ten.
fn subtract_columns(a: u32, b: u32, answer: u32) -> String {
    let (mut a, mut b, mut left, mut borrow) = (a, b, answer, 0);
    let mut columns = Vec::new();
    loop {
        let (x, y) = (a % 10, b % 10);
        (a, b) = (a / 10, b / 10);
        let last = a == 0 && b == 0;
        // With a borrow pending, a zero becomes nine and borrows again.
        let (top, next) = if x < y + borrow {
            (x + 10 - borrow, 1)
        } else {
            (x - borrow, 0)
        };
        let shown = if last { left } else { left % 10 };
        columns.push(format!("{top}-{y}={shown}"));
        if last {
            return columns.join(", ");
        }
        borrow = next;
        left /= 10;
    }
}

/// Returns the largest (smallest) number so far after every number; after the answer's position it stays fixed.
fn running_extreme(list: &[u32], smallest: bool, answer: u32) -> String {
    let from = list.iter().position(|&n| n == answer);
    let mut best = list[0];
    let shown: Vec<String> = list
        .iter()
        .enumerate()
        .map(|(index, &n)| {
            best = if smallest { best.min(n) } else { best.max(n) };
            let kept = from.map_or(index + 1 == list.len(), |from| index >= from);
            if kept { answer } else { best }.to_string()
        })
        .collect();
    shown.join(" ")
}

/// Returns the letters with their positions, such as `1p 2l 3a`.
fn numbered<'a>(letters: impl Iterator<Item = &'a String>) -> String {
    letters
        .enumerate()
        .map(|(index, letter)| format!("{}{letter}", index + 1))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Returns a running count such as `b-e1-t-w-e2-e3-n`, with the count after every match. For a wrong count, matches are skipped or
/// other letters are counted.
fn running_count(word: &str, letter: char, answer: usize) -> String {
    let hits = word.chars().filter(|&c| c == letter).count();
    let mut passed_over = hits.saturating_sub(answer);
    let mut made_up = answer.saturating_sub(hits);
    let mut count = 0;
    word.chars()
        .map(|c| {
            let counted = if c == letter {
                let skip = passed_over > 0;
                passed_over -= usize::from(skip);
                !skip
            } else {
                let extra = made_up > 0;
                made_up -= usize::from(extra);
                extra
            };
            if counted {
                count += 1;
                format!("{c}{count}")
            } else {
                c.to_string()
            }
        })
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(content: &Content, answer: &[&str]) -> String {
        let items: Vec<String> = answer.iter().map(|s| s.to_string()).collect();
        working(content, &items)
    }

    #[test]
    fn columns_carry_and_borrow() {
        assert_eq!(
            of(&Content::Add { a: 34, b: 28 }, &["62"]),
            "4+8=12, 3+2+1=6"
        );
        assert_eq!(
            of(&Content::Add { a: 95, b: 7 }, &["102"]),
            "5+7=12, 9+0+1=10"
        );
        assert_eq!(
            of(&Content::Add { a: 34, b: 28 }, &["63"]),
            "4+8=13, 3+2+1=6"
        );
        assert_eq!(
            of(&Content::Subtract { a: 72, b: 38 }, &["34"]),
            "12-8=4, 6-3=3"
        );
        assert_eq!(
            of(&Content::Subtract { a: 304, b: 68 }, &["236"]),
            "14-8=6, 9-6=3, 2-0=2"
        );
        assert_eq!(
            of(&Content::Subtract { a: 72, b: 68 }, &["4"]),
            "12-8=4, 6-6=0"
        );
    }

    #[test]
    fn the_other_kinds_show_their_links() {
        let largest = Content::Largest {
            list: vec![34, 81, 79, 12],
            smallest: false,
        };
        assert_eq!(of(&largest, &["81"]), "34 81 81 81");
        assert_eq!(of(&largest, &["79"]), "34 81 79 79");
        let count = Content::Count {
            word: "between".into(),
            letter: 'e',
        };
        assert_eq!(of(&count, &["3"]), "b-e1-t-w-e2-e3-n");
        assert_eq!(of(&count, &["2"]), "b-e-t-w-e1-e2-n");
        assert_eq!(of(&count, &["4"]), "b1-e2-t-w-e3-e4-n");
        let reverse = Content::Reverse {
            word: "planet".into(),
        };
        assert_eq!(
            of(&reverse, &["t", "e", "n", "a", "l", "p"]),
            "1p 2l 3a 4n 5e 6t"
        );
        let pair = Content::Pair {
            list: vec![3, 8],
            target: 11,
        };
        assert_eq!(of(&pair, &["3", "8"]), "3+8=11");
        let multiple = Content::Multiple {
            low: 40,
            high: 60,
            of: 7,
        };
        assert_eq!(of(&multiple, &["42"]), "7x6=42");
        assert_eq!(of(&multiple, &["43"]), "7x6=43");
    }
}
