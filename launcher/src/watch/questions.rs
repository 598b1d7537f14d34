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
/// Who waits can give up at any moment, and make another question appear under the finger that answers this one: after a
/// question has gone by itself, the first line within this time was meant for it.
const MEANT: Duration = Duration::from_secs(10);

/// The questions that are open, the one on the screen first.
pub(super) struct Questions {
    open: VecDeque<Question>,
    /// Since when the first of them is on the screen.
    shown: Option<(Question, Instant)>,
    /// When the question on the screen ended without an answer from here.
    lost: Option<Instant>,
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
        Questions { open: VecDeque::new(), shown: None, lost: None, lines }
    }

    /// Takes in what became of a waiting connection.
    pub(super) fn hear(&mut self, known: &Known, event: &Event) -> anyhow::Result<()> {
        let Some(id) = verdict_id(event) else {
            return self.prompt();
        };
        if event.action == "wait" {
            return self.waits(known, id, &event.target);
        }
        let ended = |question: &Question| question.id == id && question.known.socket() == known.socket();
        if self.open.front().is_some_and(ended) {
            self.lost = Some(Instant::now());
        }
        self.open.retain(|question| !ended(question));
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
        let meant_for_lost = self.lost.take().is_some_and(|at| at.elapsed() < MEANT);
        // A line typed while nothing was asked answers nothing.
        let Some(question) = self.open.front().cloned() else { return Ok(()) };
        let read_it = self.shown.as_ref().is_some_and(|(_, since)| since.elapsed() >= READING);
        match read(line) {
            _ if meant_for_lost => {
                eprintln!(
                    "terok: nothing was decided: that could be the answer to a question that has ended"
                );
            }
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
        (Questions { open: VecDeque::new(), shown: None, lost: None, lines }, sender)
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

    #[test]
    fn an_answer_to_a_question_that_vanished_decides_nothing_about_the_next() {
        let (mut questions, _lines) = questions();
        let answerable = |questions: &mut Questions| questions.shown.as_mut().unwrap().1 -= READING;
        questions.hear(&known(), &event("wait", 1)).unwrap();
        questions.hear(&known(), &event("wait", 2)).unwrap();
        questions.hear(&known(), &event("gone", 1)).unwrap();
        answerable(&mut questions);
        control::block_on(questions.answer("s")).unwrap().unwrap();
        assert_eq!(questions.open.len(), 1, "it was meant for the one that has gone");
        control::block_on(questions.answer("s")).unwrap().unwrap();
        assert!(questions.open.is_empty());
        // One that appears only after the other has gone.
        questions.hear(&known(), &event("wait", 3)).unwrap();
        questions.hear(&known(), &event("gone", 3)).unwrap();
        questions.hear(&known(), &event("wait", 4)).unwrap();
        answerable(&mut questions);
        control::block_on(questions.answer("s")).unwrap().unwrap();
        assert_eq!(questions.open.len(), 1);
        questions.lost = Some(Instant::now() - MEANT);
        control::block_on(questions.answer("s")).unwrap().unwrap();
        assert!(questions.open.is_empty(), "long ago");
    }
}
