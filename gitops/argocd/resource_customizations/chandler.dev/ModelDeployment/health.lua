-- Health of a ModelDeployment. Ready tells whether it is done, Stalled whether a person has to act.
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
    return { status = "Progressing", message = "the operator has not seen this spec yet" }
end

local ready = nil
local stalled = false
for _, condition in ipairs(obj.status.conditions or {}) do
    if condition.type == "Ready" then
        ready = condition
    elseif condition.type == "Stalled" and condition.status == "True" then
        stalled = true
    end
end

if ready == nil then
    return { status = "Progressing", message = "the operator has not said yet whether it is ready" }
end
if ready.status == "True" then
    -- With replicas: 0 nothing runs, as was asked for, and the weights are kept.
    if ready.reason == "Suspended" then
        return { status = "Suspended", message = ready.message }
    end
    return { status = "Healthy", message = ready.message }
end
if stalled then
    return { status = "Degraded", message = ready.message }
end
return { status = "Progressing", message = ready.message }
