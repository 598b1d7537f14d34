//! The nearest valid spelling of a misspelt word, for error messages (A1).

/// The candidate nearest to `word`, where it is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(128).flat_map(char::to_lowercase).collect();
    let limit = (word.len() / 3).clamp(1, 4);
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &candidate.chars().collect::<Vec<_>>()), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean "X"?`, or nothing where no candidate is near.
pub fn hint<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map_or_else(String::new, |near| format!("; did you mean {near:?}?"))
}

/// Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        let keys = ["terok.shield.allow", "terok.shield.deny", "terok.shield"];
        assert_eq!(nearest("terok.sheild.allow", keys), Some("terok.shield.allow"));
        assert_eq!(nearest("terok.shield.alow", keys), Some("terok.shield.allow"));
        assert_eq!(nearest("TEROK.SHIELD", keys), Some("terok.shield"));
        assert_eq!(nearest("dwon", ["up", "down", "block"]), Some("down"));
    }

    #[test]
    fn something_else_altogether_is_not() {
        assert_eq!(nearest("terok.frobnicate", ["terok.shield", "terok.name"]), None);
        assert_eq!(nearest("", ["up", "down"]), None);
    }
}
