//! The program of the agent.

fn main() {
    agent::main();
}
