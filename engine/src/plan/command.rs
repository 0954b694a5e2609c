//! Entrypoint and command, by Docker's rules.

/// The arguments of the container's process, program first. `None` where nobody named a program.
///
/// | `--entrypoint` | runs |
/// | --- | --- |
/// | not given | the image's entrypoint, then the user's command, else the image's command |
/// | given | it, then the user's command; the image's command does not count |
/// | given empty | the user's command alone |
pub fn arguments(
    entrypoint_option: Option<&str>,
    user_command: &[String],
    image_entrypoint: &[String],
    image_command: &[String],
) -> Option<Vec<String>> {
    let (entrypoint, command) = match entrypoint_option {
        None if user_command.is_empty() => (image_entrypoint.to_vec(), image_command),
        None => (image_entrypoint.to_vec(), user_command),
        Some("") => (Vec::new(), user_command),
        Some(program) => (vec![program.to_owned()], user_command),
    };
    let arguments: Vec<String> = entrypoint.into_iter().chain(command.iter().cloned()).collect();
    (!arguments.is_empty()).then_some(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entrypoint_and_command_merge_as_in_docker() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let cases = [
            // option, user, image entrypoint, image command, result
            (None, "", "/bin/sh -c", "echo hi", "/bin/sh -c echo hi"),
            (None, "ls /", "/bin/sh -c", "echo hi", "/bin/sh -c ls /"),
            (None, "", "", "echo hi", "echo hi"),
            (None, "ls", "", "echo hi", "ls"),
            (None, "", "/app", "", "/app"),
            (Some("/other"), "", "/app", "arg", "/other"),
            (Some("/other"), "x", "/app", "arg", "/other x"),
            (Some(""), "x y", "/app", "arg", "x y"),
        ];
        for (option, user, entrypoint, command, result) in cases {
            let have = arguments(option, &words(user), &words(entrypoint), &words(command));
            assert_eq!(have, Some(words(result)), "{option:?} {user} {entrypoint} {command}");
        }
    }

    #[test]
    fn without_any_program_there_is_none() {
        assert_eq!(arguments(None, &[], &[], &[]), None);
        assert_eq!(arguments(Some(""), &[], &["/app".into()], &["arg".into()]), None);
    }
}
