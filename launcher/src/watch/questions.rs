//! `terok watch --ask`: one question at a time about the connections that wait, answered by a line of one letter.

use super::verdict_id;
use crate::containers::Known;
use crate::{control, show};
use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};
use terok_policy::audit::Event;
use terok_policy::control::Scope;
use tokio::sync::mpsc;

/// Nobody reads a question and answers it in less: a line that comes sooner was meant for the one before it, which was
/// just decided elsewhere.
const READING: Duration = Duration::from_millis(500);

/// The questions that are open, the one on the screen first.
pub(super) struct Questions {
    open: VecDeque<Question>,
    /// Since when the first of them is on the screen.
    shown: Option<(Question, Instant)>,
    lines: mpsc::UnboundedReceiver<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    known: Known,
    id: u64,
    target: String,
}

/// What a line of the person means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Give(bool, Scope),
    Skip,
    Unclear,
}

fn read(line: &str) -> Answer {
    match line.trim() {
        "o" | "once" => Answer::Give(true, Scope::Once),
        "a" | "always" => Answer::Give(true, Scope::Always),
        "d" | "deny" => Answer::Give(false, Scope::Once),
        "s" | "skip" => Answer::Skip,
        _ => Answer::Unclear,
    }
}

impl Questions {
    /// Reads the terminal on a thread of its own.
    pub(super) fn new() -> Self {
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Questions { open: VecDeque::new(), shown: None, lines }
    }

    /// Takes in what became of a waiting connection.
    pub(super) fn hear(&mut self, known: &Known, event: &Event) -> anyhow::Result<()> {
        let Some(id) = verdict_id(event) else {
            return self.prompt();
        };
        if event.action == "wait" {
            return self.waits(known, id, &event.target);
        }
        self.open.retain(|question| question.id != id || question.known.socket() != known.socket());
        self.prompt()
    }

    /// A connection waits.
    pub(super) fn waits(&mut self, known: &Known, id: u64, target: &str) -> anyhow::Result<()> {
        let same = |question: &Question| question.id == id && question.known.socket() == known.socket();
        if !self.open.iter().any(same) {
            self.open.push_back(Question { known: known.clone(), id, target: show::printable(target) });
        }
        self.prompt()
    }

    /// The person's next line; `None` where the terminal is gone. Without questions it waits for ever.
    pub(super) async fn line(questions: &mut Option<Self>) -> Option<String> {
        match questions {
            Some(questions) => questions.lines.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Does what `line` says about the question on the screen.
    pub(super) async fn answer(&mut self, line: &str) -> anyhow::Result<()> {
        // A line typed while nothing was asked answers nothing.
        let Some(question) = self.open.front().cloned() else { return Ok(()) };
        let read_it = self.shown.as_ref().is_some_and(|(_, since)| since.elapsed() >= READING);
        match read(line) {
            _ if !read_it => {}
            Answer::Unclear => {}
            Answer::Skip => drop(self.open.pop_front()),
            Answer::Give(allow, scope) => {
                self.open.pop_front();
                // It may have ended, or another operator was faster.
                if let Err(error) = control::verdict(&question.known, question.id, allow, scope).await {
                    eprintln!("terok: {error:#}");
                }
            }
        }
        self.prompt()
    }

    fn prompt(&mut self) -> anyhow::Result<()> {
        let first = self.open.front();
        if first != self.shown.as_ref().map(|(question, _)| question) {
            self.shown = first.map(|question| (question.clone(), Instant::now()));
        }
        if let Some(Question { known, id, target }) = first {
            let mut out = std::io::stdout().lock();
            let name = show::printable(known.name());
            let ask = format!("{name} wants {target} ({id}): o once, a always, d deny, s skip? ");
            write!(out, "{}", show::toned(show::Tone::Notice, &ask))?;
            out.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions() -> (Questions, mpsc::UnboundedSender<String>) {
        let (sender, lines) = mpsc::unbounded_channel();
        (Questions { open: VecDeque::new(), shown: None, lines }, sender)
    }

    fn event(action: &str, id: u64) -> Event {
        let text = format!(
            r#"{{"t":0,"kind":"verdict","action":"{action}","target":"a.example:443","detail":{{"id":{id}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn known() -> Known {
        Known { id: "abc".into(), record: None, run: Some("/nowhere/abc".into()), state: "/nowhere".into() }
    }

    #[test]
    fn a_question_is_asked_once_and_taken_back_when_somebody_else_decided() {
        let (mut questions, _lines) = questions();
        for (action, id) in [("wait", 1), ("wait", 2), ("wait", 1)] {
            questions.hear(&known(), &event(action, id)).unwrap();
        }
        assert_eq!(questions.open.len(), 2);
        questions.hear(&known(), &event("timeout", 1)).unwrap();
        assert_eq!(questions.open.iter().map(|question| question.id).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn letters_and_words_are_understood_and_an_empty_line_decides_nothing() {
        assert_eq!(read("o"), Answer::Give(true, Scope::Once));
        assert_eq!(read(" always "), Answer::Give(true, Scope::Always));
        assert_eq!(read("d"), Answer::Give(false, Scope::Once));
        assert_eq!(read("s"), Answer::Skip);
        for line in ["", "y", "yes", "O ", "allow"] {
            assert_eq!(read(line), Answer::Unclear, "{line:?}");
        }
    }

    #[test]
    fn a_line_that_comes_too_soon_was_meant_for_another_question() {
        let (mut questions, _lines) = questions();
        questions.hear(&known(), &event("wait", 1)).unwrap();
        questions.hear(&known(), &event("wait", 2)).unwrap();
        control::block_on(questions.answer("s")).unwrap().unwrap();
        assert_eq!(questions.open.len(), 2, "nobody reads so fast");
        questions.shown.as_mut().unwrap().1 = Instant::now() - READING;
        control::block_on(questions.answer("what")).unwrap().unwrap();
        assert_eq!(questions.open.len(), 2, "an unclear line decides nothing");
        control::block_on(questions.answer("s")).unwrap().unwrap();
        assert_eq!(questions.open.len(), 1);
        control::block_on(questions.answer("s")).unwrap().unwrap();
        assert_eq!(questions.open.len(), 1, "the next question has just come up");
    }
}
