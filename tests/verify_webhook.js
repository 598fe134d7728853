// Verifies one webhook with the package `standardwebhooks`, as a receiver in JavaScript does.
// Standard input: {"secret", "headers", "body"}. Standard output: {"accepted": the payload} or {"refused": why}.
const { Webhook } = require("standardwebhooks");

const { secret, headers, body } = JSON.parse(require("fs").readFileSync(0, "utf8"));
try {
  console.log(JSON.stringify({ accepted: new Webhook(secret).verify(body, headers) }));
} catch (error) {
  console.log(JSON.stringify({ refused: `${error.name}: ${error.message}` }));
}
