// Evaluates an expression over scripts of the chat page that need no browser.
//
// stdin: {script, expression, given}; stdout: its value, or {error}.

const vm = require("vm");
const { script, expression, given } = JSON.parse(require("fs").readFileSync(0, "utf8"));
globalThis.given = given;
vm.runInThisContext(script);
Promise.resolve()
  .then(() => vm.runInThisContext(`(async () => ${expression})()`))
  .catch((error) => ({ error: error.message }))
  .then((value) => console.log(JSON.stringify(value ?? null)));
