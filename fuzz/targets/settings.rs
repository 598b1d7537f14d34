//! A settings file: never a panic, and every error is one clean line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use terok_policy::profile::Catalog;
use terok_policy::rule::Target;
use terok_policy::settings::Settings;

fuzz_target!(|text: &str| {
    match Settings::parse("config.toml", text) {
        Ok(settings) => {
            let targets = settings.no_proxy.iter().flatten();
            assert!(targets.clone().all(|text| text.parse::<Target>().is_ok_and(|target| target.to_string() == *text)));
            let _ = settings.all_policy(&Catalog::bundled());
            assert_eq!(Settings::default().over(settings.clone()), settings);
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    }
});
