"use strict";
// Sends the key once; the server answers with a cookie that scripts cannot read.

document.getElementById("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const headers = { Authorization: `Bearer ${document.getElementById("key").value}` };
  const answer = await fetch("/session", { method: "POST", headers }).catch(() => null);
  if (answer?.ok) return location.reload();
  const problem = document.querySelector('[data-part="problem"]');
  problem.textContent = answer ? "That is not the key of this server." : "The server does not answer.";
  problem.hidden = false;
});
