//! Where terok is installed.
